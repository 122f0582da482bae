"""`python -m trigru`: the same as the command `trigru`."""

import sys

from .cli import main

sys.exit(main())
