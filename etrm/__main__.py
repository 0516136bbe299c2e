"""`python -m etrm` is the command line."""

import sys

from etrm.cli import main

sys.exit(main())
