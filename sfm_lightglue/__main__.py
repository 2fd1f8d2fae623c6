"""`python -m sfm_lightglue`."""

import sys

from sfm_lightglue.cli import main_of_process

if __name__ == "__main__":
    sys.exit(main_of_process())
