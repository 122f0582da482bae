"""The tests with each set of versions of Python, torch and triton that trigru promises, in environments of their own.

    python scripts/matrix.py                  # the short part, with every set whose Python is here
    python scripts/matrix.py --turn           # with one of them: another one each day
    python scripts/matrix.py --turn --brief   # a few tests, with the next set of which pip finds a CPU build of torch
    python scripts/matrix.py --only 3.10      # with those whose versions begin so
    python scripts/matrix.py --full           # the whole test command; some 15 minutes a set on two cores
    python scripts/matrix.py --keep FOLDER    # environments stay there, and the next time nothing is downloaded
    python scripts/matrix.py --list

A Python is looked for as `python3.X`, then among pyenv's versions. The last thing printed is a table for the README;
the exit code is 1 where a set failed. Where an index offers torch's CPU builds under plain version numbers, pip takes
those; else set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import glob
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Versions(NamedTuple):
    """A set of versions."""

    python: str
    torch: str
    triton: str

    def __str__(self) -> str:
        return f"Python {self.python}, torch {self.torch}, triton {self.triton}"


SETS = (
    Versions("3.10", "2.9.1", "3.5.1"),
    Versions("3.11", "2.13.0", "3.9.0"),
    Versions("3.12", "2.11.0", "3.6.0"),
    Versions("3.13", "2.15.0", "3.9.0"),
)
# What a version can break: the call of torch's functions and operators, of its compiler, of Triton's language, of its
# launch; the equations themselves are the same everywhere.
SHORT = (
    "modules",
    "functional",
    "operators",
    "autograd",
    "launch",
    "repeat",
    "jit_run",
    "gates",
    "compiler",
    "options_together",
    "persistent",
)
# It is imported; modules and functions; a kernel by Triton's own launch; a cell by torch's compiler.
BRIEF = (
    *("-n", "0"),
    "tests/test_modules.py",
    "tests/test_functional.py",
    "tests/test_jit_run.py::test_every_kernel[resident-torch-padded]",
    "tests/test_compiler.py::test_cells_compile_whole[torch]",
)
NEEDED = ("numpy>=2.0,<2.4", "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "expecttest>=0.2", "setuptools>=77")


def interpreter(version: str) -> str | None:
    """A Python of this version, or None."""
    found = [f"python{version}", *sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python")))]
    for one in found:
        try:
            said = subprocess.run([one, "--version"], capture_output=True, text=True)
        except OSError:
            continue
        if said.returncode == 0 and said.stdout.startswith(f"Python {version}."):
            return one
    return None


def without_cpu_build(versions: Versions) -> str | None:
    """What pip says where it finds no CPU build of torch for this Python, else None. Nothing is downloaded."""
    where = ["--python-version", versions.python, "--only-binary=:all:", "--target", tempfile.gettempdir()]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", *where]
    env = os.environ | {"PIP_CONSTRAINT": os.devnull}
    done = subprocess.run([*pip, f"torch=={versions.torch}+cpu"], env=env, capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["nothing"])[-1] if done.returncode else None


def tried(versions: Versions, python: str, folder: Path, full: bool, tests: list[str]) -> tuple[bool, str]:
    """Whether the tests passed, and pytest's closing line. full: with all that the extra test installs."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = str(folder / "bin" / "python")
    pip = [inside, "-m", "pip", "install", "--quiet"]
    own = ["-e", f"{ROOT}[test]"] if full else ["--no-deps", "-e", str(ROOT)]
    exactly = [f"torch=={versions.torch}", f"triton=={versions.triton}"]
    for what in (["--upgrade", "pip"], [exactly[0], *([] if full else NEEDED)], own, ["--no-deps", exactly[1]]):
        subprocess.run([*pip, *what], env=os.environ | {"PIP_CONSTRAINT": os.devnull}, check=True)
    env = os.environ | {"TRITON_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run([inside, "-m", "pytest", *tests], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-20000:], done.stderr[-5000:], sep="\n")
    closing = re.findall(r"^.*\d+ passed.*$", done.stdout, re.MULTILINE)
    return done.returncode == 0, closing[-1].strip("= ") if closing else f"exit code {done.returncode}"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="the tests with each set of versions that trigru promises")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--full", action="store_true", help="the whole test command, not its short part")
    part.add_argument("--brief", action="store_true", help="a few tests of the short part")
    parser.add_argument("--turn", action="store_true", help="one set, another one each day")
    parser.add_argument("--only", default="", help='those whose "Python torch triton" begins so')
    parser.add_argument(
        "--keep", type=os.path.abspath, metavar="FOLDER", help="make environments there, and leave them"
    )
    parser.add_argument("--list", action="store_true", help="the sets, and where their Pythons are")
    args = parser.parse_args()
    here = {versions: interpreter(versions.python) for versions in SETS if " ".join(versions).startswith(args.only)}
    if args.list:
        for versions, python in here.items():
            print(f"{versions}: {python or 'no such Python here'}")
        return 0
    able = [versions for versions, python in here.items() if python]
    for versions in (versions for versions in here if versions not in able):
        print(f"SKIPPED: {versions}: there is no such Python here")
    if not able:
        print(f"no set to try: there is no Python of {', '.join(sorted({v.python for v in here}))} here")
        return 0 if args.brief else 2
    tests = [] if args.full else [*BRIEF] if args.brief else [f"tests/test_{name}.py" for name in SHORT]
    turn = datetime.date.today().toordinal() % len(able) if args.turn else 0
    chosen = able[turn:] + able[:turn]
    if args.brief:  # CUDA's builds are several GB
        said = {versions: without_cpu_build(versions) for versions in chosen}
        for versions in (versions for versions in chosen if said[versions]):
            print(f"SKIPPED: {versions}: {said[versions]}")
        chosen = [versions for versions in chosen if not said[versions]]
    if args.turn:
        chosen = chosen[:1]
    rows, failed = [], False
    for versions in chosen:
        print(f"== {versions}", flush=True)
        start = time.monotonic()
        with contextlib.nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as folder:
            passed, closing = tried(versions, here[versions] or "", Path(folder) / "-".join(versions), args.full, tests)
        failed |= not passed
        print(closing, flush=True)
        rows.append(f"| {' | '.join(versions)} | {closing} | {time.monotonic() - start:.0f} |")
    print("\n| Python | torch | triton | pytest | seconds |\n| --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
