"""For every test, and the servers that tests start."""

import os

# Tests share their machine with others: OpenMP's threads must not spin while they wait (see docs/decisions/001).
os.environ.setdefault("GOMP_SPINCOUNT", "0")
