"""Whether Triton can be used in this process. That it is installed is not enough: a library that is missing, a driver
that does not answer, or a version of years ago show when it is imported. Whoever computes on a CPU must not notice."""

from __future__ import annotations

import functools
import importlib.util
import re

OLDEST = (3, 5)


@functools.cache
def why_unusable() -> str | None:
    """Why Triton cannot be used here, or None where it can. It is imported once, at the first call."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    try:
        import triton

        version = str(triton.__version__)
    except Exception as error:  # a package that is broken may raise anything
        said = " ".join(str(error).split()).rstrip(".") or "no message"
        return f"triton is installed but cannot be imported: {type(error).__name__}: {said}"
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        return f"triton {version} is installed, {'.'.join(map(str, OLDEST))} or newer is needed"
    return None


def interpreted() -> bool:
    """Whether Triton, which can be used, runs kernels in its interpreter and compiles none."""
    from ..kernels import launch

    return launch.interpreted()
