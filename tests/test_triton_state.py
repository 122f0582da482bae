"""A Triton that is missing, broken or old is nothing to whoever computes on a CPU, and `trigru info` says what it is;
and how torch is told to multiply float32, by its old door or its new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from trigru.bench.measuring.conditions import multiplied_in
from trigru.planning.plan import precision_of
from trigru.planning.precision import multiplied_in_tf32

BROKEN = {
    "ImportError": ("raise ImportError('libtriton.so: cannot open shared object file')", "libtriton.so: cannot open"),
    "RuntimeError": ("raise RuntimeError('0 active drivers ([]). There should only be one.')", "0 active drivers"),
    "no version": ("", "has no attribute '__version__'"),
    "old": ("__version__ = '2.1.0'", "triton 2.1.0 is installed, 3.5 or newer is needed"),
}
LAYERS_AND_INFO = """
import torch, trigru
from trigru.command.cli import main
trigru.GRU(4, 6)(torch.randn(20, 2, 4))[0].sum().backward()
try:
    trigru.GRU(4, 6, schedule='stepwise')(torch.randn(20, 2, 4))
except RuntimeError as error:
    print(error)
print('INFO', main(['info']))
print('JSON')
main(['info', '--json'])
"""
NEEDS_TRITON = """
import sys
from trigru.command.cli import main
for argv in (['inspect'], ['check', '--ptx'], ['bench', '--suite', 'work'], ['bench', '--suite', 'overhead']):
    print(main(argv), file=sys.stderr)
"""


def in_a_process(*argv, path=None):
    """Run Python with `path` first on its path."""
    paths = [str(path), os.environ.get("PYTHONPATH", "")] if path else [os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "200"}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env)


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path):
    """A folder with such a Triton in it, and what is to be said of it."""
    text, said = BROKEN[request.param]
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(text)
    return tmp_path, said


def test_a_cpus_user_does_not_notice_and_info_says_what_is_wrong(broken):
    path, said = broken
    done = in_a_process("-c", LAYERS_AND_INFO, path=path)
    assert done.returncode == 0, done.stderr
    refusal, _, text = done.stdout.partition("Versions")
    assert refusal.startswith("schedule 'stepwise' cannot run here: ")
    assert said in refusal
    text, _, as_json = text.partition("JSON\n")
    assert said in text
    assert "INFO 0" in text
    assert said in json.loads(as_json)["triton"]["state"]


@pytest.mark.parametrize("broken", ["RuntimeError"], indirect=True)
def test_what_needs_a_triton_says_so_in_one_line(broken):
    path, said = broken
    done = in_a_process("-c", NEEDS_TRITON, path=path)
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["1"] * 4, done.stderr
    assert [line.split(":")[0] for line in lines[::2]] == ["trigru inspect", "trigru check", *["trigru bench"] * 2]
    assert all(said in line for line in lines[::2])
    assert done.stdout == ""


NEW_DOOR = """
import torch
import trigru
from trigru.planning.plan import precision_of
cudnn, found = torch.backends.cudnn, []
for part, precision in (("rnn", "ieee"), ("conv", "ieee"), ("rnn", "tf32")):
    getattr(cudnn, part).fp32_precision = precision
    trigru.GRU(4, 6)(torch.randn(20, 2, 4))
    found.append(precision_of(torch.float32))
cudnn.allow_tf32 = False
found.append(precision_of(torch.float32))
torch.backends.fp32_precision = "tf32"
found.append(precision_of(torch.float32))
print(*found)
"""


@pytest.mark.skipif(torch.version.hip is not None, reason="AMD GPUs have no TF32")
def test_precision_follows_both_of_torchs_doors():
    """What was set for RNNs last, by whichever door; what was never set for them is that of all."""
    done = in_a_process("-c", NEW_DOOR)
    assert done.stdout == "ieee ieee tf32 ieee tf32\n", done.stderr


def test_precision_within_a_block_and_after_it():
    done = in_a_process("-c", "import sys; sys.path.insert(0, 'tests'); import test_triton_state as t; t.blocks()")
    assert done.stdout == "ran\n", done.stderr


def blocks():
    """In a process of its own: the new door cannot be closed again."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    for new_door in (False, True):
        if new_door:
            cudnn.conv.fp32_precision = matmul.fp32_precision = "ieee"
        before = precision_of(torch.float32), cudnn.conv.fp32_precision, matmul.fp32_precision
        for rnn in (False, True):
            with multiplied_in_tf32(rnn=rnn, products=not rnn):
                assert cudnn.allow_tf32 is rnn
                assert matmul.allow_tf32 is not rnn
                assert precision_of(torch.float32) == ("tf32" if rnn else "ieee")
        with multiplied_in("tf32"):
            assert matmul.fp32_precision == cudnn.rnn.fp32_precision == "tf32"
        assert before == (precision_of(torch.float32), cudnn.conv.fp32_precision, matmul.fp32_precision)
    print("ran")
