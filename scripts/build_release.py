"""The wheel and the sdist, the same bytes from the same commit: python scripts/build_release.py [--out dist]

Both are built by `python -m build`, every file with the commit's time, or that of SOURCE_DATE_EPOCH. setuptools writes
an sdist with the clock's time, and names of the user in it: it is packed again, in a fixed order.
Prints the SHA-256 of both. Needs the package build, and no other change in the checkout than the commit's.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def packed_again(sdist: Path, out: Path, when: int) -> None:
    """The same files in the order of their names, with one time and nobody's name."""
    with tarfile.open(sdist) as old, io.BytesIO() as memory:
        with tarfile.open(fileobj=memory, mode="w", format=tarfile.PAX_FORMAT) as new:
            for member in sorted(old.getmembers(), key=lambda member: member.name):
                data = old.extractfile(member)
                member.mtime, member.uid, member.gid, member.uname, member.gname = when, 0, 0, "", ""
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                member.pax_headers = {}
                new.addfile(member, data)
        with open(out, "wb") as file, gzip.GzipFile("", "wb", mtime=when, fileobj=file) as zipped:
            zipped.write(memory.getvalue())


def build(source: Path, out: Path, when: int, *options: str) -> list[Path]:
    """Both files, of a checkout. options: of `python -m build`."""
    out.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"SOURCE_DATE_EPOCH": str(when)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "build", *options, "--outdir", folder, str(source)]
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        (sdist,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
        packed_again(sdist, out / sdist.name, when)
        (out / wheel.name).write_bytes(wheel.read_bytes())
    return [out / sdist.name, out / wheel.name]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="build the wheel and the sdist, byte for byte the same each time")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    asked = ["git", "log", "-1", "--format=%ct"]
    when = (
        os.environ.get("SOURCE_DATE_EPOCH")
        or subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    )
    for path in build(ROOT, args.out, int(when)):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path)


if __name__ == "__main__":
    main()
