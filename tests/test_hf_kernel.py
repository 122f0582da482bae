"""trigru as a kernel for Hugging Face's `kernels`: built from the sources, and used without trigru being installed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BACKENDS = ("cpu", "cuda", "rocm")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Path:
    """The folder that would be published."""
    out = tmp_path_factory.mktemp("hf") / "kernel"
    command = [sys.executable, str(ROOT / "scripts" / "build_hf_kernel.py"), str(out), "--repo-id", "someone/trigru"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return out


def execute(kernel: Path, code: str) -> None:
    """Run code in a process that has neither trigru nor the checkout, where `kernel` is that folder."""
    start = f"import sys\nfrom pathlib import Path\nsys.modules['trigru'] = None\nkernel = Path({str(kernel)!r})\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)],
        cwd=kernel,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]


LOAD = """
import importlib.util, json, torch

def load(folder):
    name = json.loads((folder / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def assert_as_torch(cls, forward=lambda module, x: module(x)):
    theirs = torch.nn.GRU(5, 7, 2, bidirectional=True)
    ours = cls(5, 7, 2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(20, 3, 5)
    found = []
    for output, h_n in (theirs(x), forward(ours, x)):
        parameters = (theirs, ours)[len(found)].parameters()
        found.append([output, h_n, *torch.autograd.grad(output.square().sum() + h_n.sum(), list(parameters))])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow  # some processes, each of which imports torch
def test_two_variants_in_one_process_compute_what_torch_does(kernel):
    execute(
        kernel,
        LOAD
        + """
first, second = load(kernel / "build/torch-cpu"), load(kernel / "build/torch-cuda")
assert first.GRU is not second.GRU
for module in (first, second):
    assert_as_torch(module.GRU)
    compiled = torch.compile(module.GRU(5, 7), backend="aot_eager", fullgraph=True)
    compiled(torch.randn(20, 3, 5))[0].sum().backward()
    assert hasattr(getattr(torch.ops, module.__name__), "gru")
assert not hasattr(torch.ops.trigru, "gru")
""",
    )


def test_the_folder_for_old_versions_has_the_same_names(kernel):
    execute(
        kernel,
        LOAD
        + """
sys.path.insert(0, str(kernel / "build/torch-cpu"))
del sys.modules["trigru"]
import trigru
assert "layers" in trigru.__all__
assert_as_torch(trigru.GRU)
""",
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_metadata(kernel, backend):
    variant = kernel / "build" / f"torch-{backend}"
    said = json.loads((variant / "metadata.json").read_text())
    assert said["name"] == "trigru"
    assert said["id"].isidentifier()
    assert said["backend"]["type"] == backend
    files = {path.relative_to(variant).as_posix() for path in variant.rglob("*") if path.is_file()} - {"metadata.json"}
    assert set(said["digest"]["files"]) == files
    for name, digest in said["digest"]["files"].items():
        assert base64.b64encode(hashlib.sha256((variant / name).read_bytes()).digest()).decode() == digest
    assert {"kernels/gates.py", "layers.py", "modules.py"} <= files
    assert not any(name.startswith("command/") for name in files), "the command line stays out"


def test_the_card_names_the_repository(kernel):
    assert 'get_kernel("someone/trigru"' in (kernel / "README.md").read_text()


def test_a_folder_that_holds_a_kernel_is_left_alone(kernel):
    script = str(ROOT / "scripts" / "build_hf_kernel.py")
    done = subprocess.run([sys.executable, script, str(kernel)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "FileExistsError" in done.stderr


def has_library() -> bool:
    """Whether the library `kernels` is installed; the checkout has a folder of that name."""
    try:
        metadata.distribution("kernels")
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not has_library(), reason="the library kernels comes with the extra hub")
def test_the_library_accepts_loads_and_uses_it(kernel):
    execute(
        kernel,
        LOAD
        + """
from kernels import LocalLayerRepository, Mode, get_local_kernel, kernelize, use_kernel_forward_from_hub
from kernels import use_kernel_mapping
from kernels._rust import Digest, DigestAlgorithm, Metadata

for variant in (kernel / "build").iterdir():
    metadata = Metadata.read_from_file(variant / "metadata.json")
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
assert_as_torch(get_local_kernel(kernel, backend="cpu").GRU)

class Extensible(torch.nn.GRU):
    pass

def kernelized(module, x):
    with use_kernel_mapping({"GRU": {"cpu": LocalLayerRepository(kernel, layer_name="GRU")}}):
        kernelize(module, mode=Mode.TRAINING, device="cpu", use_fallback=False)
    assert "layers" in module.forward.__func__.__module__
    return module(x)

assert_as_torch(use_kernel_forward_from_hub("GRU")(Extensible), kernelized)
""",
    )
