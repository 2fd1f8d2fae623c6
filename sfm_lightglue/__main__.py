"""`python -m sfm_lightglue`."""

import sys

from sfm_lightglue.cli import main

if __name__ == "__main__":
    sys.exit(main())
