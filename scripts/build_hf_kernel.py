"""Assemble trigru as a kernel for Hugging Face's `kernels` library: Python only, so nothing is compiled here.

    python scripts/build_hf_kernel.py out/hf-kernel

    out/hf-kernel/README.md                            the kernel's card
    out/hf-kernel/build/torch-<backend>/__init__.py    trigru, without its command line
                                       /layers.py      GRU, for `kernelize`
                                       /trigru/        the same, where old versions of `kernels` look for it
                                       /metadata.json

Several versions of a kernel can be loaded into one process, so each has operators in a namespace of its own, named
after its contents: the sources are copied with the namespace `trigru` rewritten. See docs/hf-kernels.md.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
from pathlib import Path

Module = tuple[str, ...]
"""A module's name inside the package: () for the package itself, ("kernels", "gates")."""

ROOT = Path(__file__).resolve().parent.parent
NAME = "trigru"
VERSION = 0  # what the Hub reserves for kernels whose interface may still change
# Triton compiles for the GPU at hand. "7.5+PTX": for 7.5 and everything newer.
BACKENDS: dict[str, dict[str, object]] = {
    "cpu": {"type": "cpu"},
    "cuda": {"type": "cuda", "archs": ["7.5+PTX"]},
    "rocm": {"type": "rocm", "archs": ["gfx90a", "gfx942", "gfx950"]},
}
NAMESPACES = re.compile(r'(?<=torch\.ops\.)trigru\b|(?<=")trigru(?=::)|(?<=Library\(")trigru(?=")')

EXPORTS = """
from . import layers

__all__ += ["layers"]
"""
FOR_OLD_VERSIONS = '''"""The kernel itself, in the folder above, for versions of `kernels` that look here."""

import importlib.util
import sys
from pathlib import Path

_path = Path(__file__).parent.parent / "__init__.py"
_name = f"{__name__}_{abs(hash(_path))}"
_spec = importlib.util.spec_from_file_location(_name, _path)
_kernel = importlib.util.module_from_spec(_spec)
sys.modules[_name] = _kernel
_spec.loader.exec_module(_kernel)
globals().update({name: getattr(_kernel, name) for name in _kernel.__all__})
__all__ = _kernel.__all__
'''
CARD = """---
library_name: kernels
license: mit
---

# trigru

GRU training with fused Triton kernels, forward and backward: `trigru.GRU` has the parameters and results of `nn.GRU`.

```python
from kernels import get_kernel

trigru = get_kernel("{repo_id}", version={version})
layer = trigru.GRU(64, 128).cuda()
```
"""


def source_of(module: Module) -> Path | None:
    """The file of a module, or None if there is no such module."""
    in_kernels = module[:1] == ("kernels",)  # installed as trigru.kernels
    base = (ROOT if in_kernels else ROOT / NAME).joinpath(*module)
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def imported_by(module: Module) -> set[Module]:
    """The package's own modules that a module imports, anywhere in its code."""
    path = source_of(module)
    assert path is not None
    package = module if path.name == "__init__.py" else module[:-1]
    found: set[Module] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple(
                (node.module or "").split(".") if node.module else ()
            )
            names = [base, *((*base, alias.name) for alias in node.names)]
            found |= {name[:end] for name in names for end in range(len(name) + 1)}
    return {name for name in found if source_of(name)}


def package_files() -> dict[str, str]:
    """The package's text by path, beginning with what `import trigru` needs: the command line stays out."""
    todo: list[Module] = [()]
    seen: set[Module] = set()
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += imported_by(module)
    files = {"layers.py": (ROOT / "scripts" / "hf_layers.py").read_text(encoding="utf-8")}
    for module in seen:
        path = source_of(module)
        assert path is not None
        name = (*module, "__init__.py") if path.name == "__init__.py" else (*module[:-1], path.name)
        files["/".join(name)] = path.read_text(encoding="utf-8")
    files["__init__.py"] += EXPORTS
    return dict(sorted(files.items()))


def build(out: Path, repo_id: str) -> list[Path]:
    """Write the kernel into the folder `out`, which must not hold one yet.

    Returns:
        The folder of each backend's variant.

    Raises:
        FileExistsError: there is one already.
        RuntimeError: the operators' namespace is not where it is looked for.
    """
    files = package_files()
    version = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    variants = []
    for backend, described in BACKENDS.items():
        variant = out / "build" / f"torch-{backend}"
        variant.mkdir(parents=True)
        identity = f"_{NAME}_{backend}_{version}"
        written = {name: NAMESPACES.sub(identity, text) for name, text in files.items()}
        if f'Library("{identity}"' not in written["operators/schema.py"]:
            raise RuntimeError('trigru/operators/schema.py: expected the namespace in Library("trigru", ...)')
        written[f"{NAME}/__init__.py"] = FOR_OLD_VERSIONS
        for name, text in written.items():
            path = variant / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        metadata = {
            "name": NAME,
            "id": identity,
            "version": VERSION,
            "license": "MIT",
            "python-depends": [],
            "backend": described,
            "digest": {"algorithm": "sha256", "files": {name: _digest(text) for name, text in written.items()}},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        variants.append(variant)
    (out / "README.md").write_text(CARD.format(repo_id=repo_id, version=VERSION), encoding="utf-8")
    return variants


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that holds no kernel yet")
    parser.add_argument("--repo-id", default="trigru/trigru", help="where it will be published (for the card)")
    args = parser.parse_args()
    for variant in build(args.out, args.repo_id):
        print(f"{variant}: {sum(path.is_file() for path in variant.rglob('*'))} files")


if __name__ == "__main__":
    main()
