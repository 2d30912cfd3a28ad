"""`python -m ibisagent` is the command line, also where scripts are not on the PATH."""

import sys

from ibisagent.cli import main

if __name__ == "__main__":  # child processes import this module
    sys.exit(main())
