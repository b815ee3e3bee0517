"""Jobs for a fleet whose processes are killed, or told to leave, all the time; exits with status 1 if one is lost, or
not run again in time, or if too few were killed during a recovery for that to be shown.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.trouble import go_through, send_away

IN_TIME = {False: 15.0, True: 5.0}  # seconds until the jobs of a worker that was killed, or told to leave, run again


def main() -> None:
    """Parse the command line, cause trouble, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=60, help="of a worker or an API; beside one of each server")
    parser.add_argument("--leave", action="store_true", help="tell workers to leave (SIGTERM) instead of killing")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="safelight-chaos-") as folder:
        go = send_away if arguments.leave else go_through
        found = go(Path(folder), arguments.jobs, arguments.kills, arguments.every, tell, arguments.seed)
    print(found)
    is_well = found.states == {"completed": found.jobs} and not found.changed and not any(found.left.values())
    is_in_time = max(found.recoveries, default=0.0) <= IN_TIME[arguments.leave]
    is_hard = arguments.leave or found.during >= arguments.kills // 6
    sys.exit(not (is_well and is_in_time and is_hard and found.statuses.keys() <= {0}))


if __name__ == "__main__":
    main()
