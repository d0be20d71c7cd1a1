"""`python -m surefoot`: the command line."""

import os
import sys

# Python puts the current directory first, where a file may have the name of a library's module.
# What an environment id names is found there all the same, after everything that is installed.
if sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from surefoot.cli.parser import main

sys.exit(main())
