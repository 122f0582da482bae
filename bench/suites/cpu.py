"""`python -m trigru.bench.suites.cpu`: the same as `trigru bench --suite cpu --device cpu`."""

import sys

from trigru.command.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--suite", "cpu", "--device", "cpu", *sys.argv[1:]]))
