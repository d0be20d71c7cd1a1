"""`python -m surefoot`: the command line."""

import sys

from surefoot.cli import main

sys.exit(main())
