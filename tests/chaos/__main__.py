"""Jobs for a fleet whose processes are killed all the time; exits with status 1 if one is lost."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.trouble import go_through


def main() -> None:
    """Parse the command line, cause trouble, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=60, help="of a worker or an API; beside one of each server")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="safelight-chaos-") as folder:
        found = go_through(Path(folder), arguments.jobs, arguments.kills, arguments.every, tell, arguments.seed)
    print(found)
    is_well = found.states == {"completed": found.jobs} and not found.changed and not any(found.left.values())
    sys.exit(not is_well)


if __name__ == "__main__":
    main()
