"""`python -m vtc_demo COMMAND`; see `cli`."""

import sys

from vtc_demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
