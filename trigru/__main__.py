"""`python -m trigru`: the same as the command `trigru`."""

import sys

from .command.cli import main

sys.exit(main())
