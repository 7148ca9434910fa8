"""``python -m raysweep``: the same program as ``raysweep``."""

import sys

from raysweep.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
