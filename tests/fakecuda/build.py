"""Compile the two libraries, once, with the compiler that Triton needs anyway."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

NATIVE = Path(__file__).resolve().parent / "native"


def _folder(package: str) -> Path:
    """Where a package is, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise RuntimeError(f"{package} is not installed")
    return Path(found.origin).parent


def libraries() -> tuple[Path, Path]:
    """Paths of libcuda.so.1 and libtorch_fakecuda.so."""
    torch, triton = _folder("torch"), _folder("triton")
    sources = [NATIVE / "libcuda.c", NATIVE / "torch_cuda.cpp"]
    parts = [*sorted(NATIVE.iterdir()), torch / "version.py", triton / "__init__.py"]
    key = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fakecuda" / key[:16]
    libcuda, libtorch = cache / "libcuda.so.1", cache / "libtorch_fakecuda.so"
    if not libtorch.exists():
        cache.mkdir(parents=True, exist_ok=True)
        cc, cxx = shutil.which("gcc") or "cc", shutil.which("g++") or "c++"
        print("fakecuda: compiling (once, half a minute)", file=sys.stderr)
        include = triton / "backends" / "nvidia" / "include"
        common = ["-O1", "-shared", "-fPIC", "-w"]
        subprocess.run(
            [cc, *common, "-Wl,-soname,libcuda.so.1", f"-I{include}", str(sources[0]), "-o", str(libcuda)], check=True
        )
        (cache / "libcuda.so").symlink_to(libcuda.name)  # for Triton 3.5, which links with -lcuda
        partial = libtorch.with_suffix(f".{os.getpid()}")
        headers = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
        libs = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-L{cache}", "-l:libcuda.so.1", "-Wl,-rpath,$ORIGIN"]
        subprocess.run([cxx, *common, "-std=c++20", *headers, str(sources[1]), "-o", str(partial), *libs], check=True)
        partial.rename(libtorch)
    return libcuda, libtorch
