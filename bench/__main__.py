"""`python -m trigru.bench`: the same as `trigru bench`."""

import sys

from trigru.command.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
