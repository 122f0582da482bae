"""Calls while torch makes tensors on another device than theirs, as after `torch.set_default_device("cuda")`. The meta
device has no values: what lands there by mistake gives no result."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import trigru
from trigru import convert
from trigru.kernels import offline
from trigru.kernels.steps import Steps

CALLS = {
    "": {},
    "zoneout": {"zoneout": 0.2},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "weight_dropout": {"weight_dropout": 0.3},
    "heads": {"num_heads": 2},
    "norm": {"norm": "layer"},
    "initial state": {"learn_initial_state": True},
    "a stack": {"num_layers": 2, "dropout": 0.3, "bidirectional": True},
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_a_module_stays_on_its_own_device(options, packed):
    layer, x, reset = trigru.GRU(4, 8, **options), torch.randn(12, 3, 4), torch.rand(12, 3) < 0.3
    lengths = torch.tensor([3, 12, 7])
    input = pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
    given = {"reset": torch.rand(22) < 0.3} if packed else {"reset": reset, "lengths": lengths}

    def run():
        torch.manual_seed(0)
        layer.zero_grad()
        output, h_n = layer(input, **given)
        h_n.square().sum().backward()
        return [output.data, h_n, *(p.grad.clone() for p in layer.parameters())]

    expected = run()
    with torch.device("meta"):
        found = run()
    assert all(map(torch.equal, found, expected))


def test_packed_rows_in_the_order_of_the_input():
    layer, lengths = trigru.GRU(4, 8), torch.tensor([9, 4, 2])
    input = pack_padded_sequence(torch.randn(9, 3, 4), lengths)
    rows = pack_padded_sequence((torch.rand(9, 3, 1) < 0.3), lengths, enforce_sorted=False)
    rows = rows._replace(data=rows.data.squeeze(-1))
    expected, _ = layer(input, reset=rows)
    with torch.device("meta"):
        found, _ = layer(input, reset=rows)
    assert torch.equal(found.data, expected.data)


def test_rows_begin_where_they_did():
    steps, cpu = Steps.of_batch_sizes([3, 3, 1]), torch.device("cpu")
    with torch.device("meta"):
        assert steps.row_offsets(cpu).tolist() == steps.computed_offsets(cpu).tolist() == [0, 3, 6, 7]


def test_packed_layers_are_compiled_ahead(monkeypatch):
    monkeypatch.setattr(offline, "compile_launch", lambda start, target: None)
    layer = trigru.GRU(8, 64, schedule="resident")
    with torch.device("meta"):
        assert len(trigru.warm(layer, 4, device="h100", packed=True)) == 3


def test_weights_of_grud_are_converted():
    layer = trigru.GRUD(3, 4, variant="torch")
    with torch.device("meta"):
        state = convert.to_grud(layer)
    assert torch.equal(state["temp_decay_x.m"], torch.eye(3))
