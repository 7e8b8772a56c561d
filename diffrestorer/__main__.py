"""`python -m diffrestorer`, and `accelerate launch -m diffrestorer` on several devices."""

import sys

from diffrestorer.cli import main

if __name__ == "__main__":
    sys.exit(main())
