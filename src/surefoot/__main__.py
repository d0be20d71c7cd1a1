"""`python -m surefoot`: the command line."""

import sys

from surefoot.cli.parser import main

sys.exit(main())
