"""In two processes: DTensors split over the batch, their outputs, states and gradients as of the whole batch in one;
and gradients under DDP and FSDP2."""

from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

import trigru

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)

LAYERS = [
    {},
    {"variant": "cho", "bias": False, "memory": "recompute", "norm": "layer"},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "variant": "chung"},
]


def results(module, x, hx):
    """Outputs and gradients of a module."""
    output, h_n = module(x, hx)
    leaves = [x, *([] if hx is None else [hx]), *module.parameters()]
    loss = output.square().sum() + h_n.sin().sum()
    return [output, h_n, *torch.autograd.grad(loss, leaves)]


def compare(mesh, options, batch, with_state):
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    torch.manual_seed(0)
    module = trigru.GRU(4, 6, **options)
    parts = module.num_layers * (2 if module.bidirectional else 1)
    shape = (batch, 5, 4) if module.batch_first else (5, batch, 4)
    x, hx = torch.randn(shape, requires_grad=True), torch.randn(parts, batch, 6, requires_grad=True)
    want = results(module, x, hx if with_state else None)
    shared = distribute_module(module, mesh)
    split = distribute_tensor(x, mesh, [Shard(0 if module.batch_first else 1)])
    state = distribute_tensor(hx, mesh, [Shard(1)]) if with_state else None
    assert shared(split, state)[0].placements == split.placements
    found = results(shared, split, state)
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got.full_tensor(), expected)
    for got, argument in zip(found[2:], [split, *([state] if with_state else []), *shared.parameters()], strict=True):
        assert got.placements == argument.placements


def refuse(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    x, module = torch.randn(5, 4, 4), trigru.GRU(4, 6)
    weights = [w.detach() for w in module.parameters()]
    everywhere = [distribute_tensor(w, mesh, [Replicate()]) for w in weights]
    h0 = distribute_tensor(torch.zeros(4, 6), mesh, [Shard(0)])
    split = distribute_tensor(x, mesh, [Shard(1)])
    with pytest.raises(RuntimeError, match=r"input: .*Shard\(dim=1\).* got \(Shard\(dim=0\),\).*to_local"):
        trigru.gru(distribute_tensor(x, mesh, [Shard(0)]), h0, *everywhere)
    with pytest.raises(
        RuntimeError, match=r"weights\[1\]: expected a DTensor placed as one of \[Replicate\(\)\], got .*fully_shard"
    ):
        trigru.gru(split, h0, everywhere[0], distribute_tensor(weights[1], mesh, [Shard(0)]), *everywhere[2:])
    with pytest.raises(RuntimeError, match=r"weights\[0\]: got a torch.Tensor beside a DTensor"):
        trigru.gru(split, h0, *weights)
    rows = distribute_tensor(torch.randn(6, 4), mesh, [Shard(0)])
    with pytest.raises(RuntimeError, match=r"input: .* one of \[Replicate\(\)\]"):
        trigru.gru(rows, h0, *everywhere, batch_sizes=torch.tensor([4, 2]))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = trigru.GRU(4, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.cell = trigru.GRUCell(16, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.cell(self.gru(x)[0][:, -1]))


def train(rank, mesh):
    """Gradients under DDP and FSDP2 of half the batch each, against those of the whole batch."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    model, x = Tagger(), torch.randn(6, 5, 4)
    ddp, fsdp = DistributedDataParallel(copy.deepcopy(model)), copy.deepcopy(model)
    for part in (fsdp.gru, fsdp.cell, fsdp):
        fully_shard(part, mesh=mesh)
    model(x).square().mean().backward()
    for kind in (ddp, fsdp):
        kind(x[rank::2]).square().mean().backward()
        for got, want in zip(kind.parameters(), model.parameters(), strict=True):
            grad = got.grad.full_tensor() if kind is fsdp else got.grad
            torch.testing.assert_close(grad, want.grad)


def run(rank, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(meeting, 2), rank=rank, world_size=2)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for options in LAYERS:
            for batch, with_state in ((4, True), (5, True), (4, False)):
                compare(mesh, options, batch, with_state)
        refuse(mesh)
        train(rank, mesh)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # threads of torch's now and then abort a process that ends by itself


def test_two_processes_find_what_one_finds(tmp_path):
    torch.multiprocessing.spawn(run, (str(tmp_path / "meeting"),), nprocs=2)
