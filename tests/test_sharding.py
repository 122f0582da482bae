"""DTensors split over the batch, in two processes: outputs, states and gradients of the whole batch in one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

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


def run(rank, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(meeting, 2), rank=rank, world_size=2)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for options in LAYERS:
            for batch, with_state in ((4, True), (5, True), (4, False)):
                compare(mesh, options, batch, with_state)
        refuse(mesh)
    finally:
        dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path):
    torch.multiprocessing.spawn(run, (str(tmp_path / "meeting"),), nprocs=2)
