"""``python -m patchlib run`` is ``patchlib run``."""

import sys

from patchlib.cli import main

if __name__ == "__main__":  # the worker processes import this module, too
    sys.exit(main())
