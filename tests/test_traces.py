"""What a process that uses the package leaves behind: no file but in Triton's cache, no connection, no pickled code."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
import torch

import trigru

# What an audit hook sees of files, sockets and processes goes to a list; `allowed` is where files may be written.
USE = """
import os, sys

writes, others = [], []

def look(event, args):
    if event == "open" and isinstance(args[0], str):
        mode, flags = args[1] or "", args[2]
        if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            writes.append(args[0])
    elif event in ("os.mkdir", "os.rename"):
        writes.append(str(args[0]))
    elif event.startswith("socket.") and event in ("socket.connect", "socket.bind", "socket.getaddrinfo"):
        others.append((event, str(args[1:])))

import torch

parameter = torch.nn.Parameter(torch.ones(1))
parameter.sum().backward()
torch.optim.SGD([parameter], 0.1).step()  # torch's own: it makes inductor's folder
sys.addaudithook(look)
import trigru, trigru.convert, trigru.init

module = trigru.GRU(3, 8, num_layers=2, bidirectional=True, dropout=0.1, variant=sys.argv[1])
optimizer = torch.optim.SGD(module.parameters(), 0.1)
for _ in range(3):
    output, h_n = module(torch.randn(12, 4, 3))
    (output.sum() + h_n.sum()).backward()
    optimizer.step()
trigru.explain(module, torch.randn(12, 4, 3))
trigru.swap(torch.nn.Sequential(torch.nn.GRU(3, 4)))
with trigru.tap(module):
    module(torch.randn(12, 4, 3))
print("writes", [path for path in writes if path != os.devnull])
print("others", others)
"""


@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_a_process_that_trains_writes_nothing_and_connects_to_nothing(variant, tmp_path):
    env = os.environ | {"HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "triton"), "TMPDIR": str(tmp_path)}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", USE, variant], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said == {"writes": "[]", "others": "[]"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_look_sees_what_it_should(tmp_path):
    """A file, and a connection, are noticed."""
    code = USE.replace(
        "print(", "import socket; open('here', 'w'); socket.socket().connect_ex(('127.0.0.1', 9)); print(", 1
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "torch"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "'here'" in done.stdout
    assert "socket.connect" in done.stdout


@pytest.mark.parametrize(
    "module",
    [
        trigru.GRU(3, 4, num_layers=2, bidirectional=True, norm="layer", learn_initial_state=True),
        trigru.GRU(4, 4, num_heads=2),
        trigru.GRUCell(3, 4, variant="dreamer"),
        trigru.GRUD(3, 4),
    ],
    ids=["GRU", "heads", "GRUCell", "GRUD"],
)
def test_a_state_dict_is_tensors_alone(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    module.load_state_dict(torch.load(file, weights_only=True))
