"""`trigru.explain`: of a model, and always what then runs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import trigru


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.encoder = trigru.GRU(4, 6, batch_first=True, dropout=0.5, num_layers=2)
        self.cell = trigru.GRUCell(6, 6, variant="cho")
        self.unused = trigru.GRU(2, 2)

    def forward(self, x, scale=1.0):
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        output, _ = self.encoder(x * scale)
        return self.cell(self.cell(output[:, -1]))


def test_a_model_is_explained_by_the_names_of_its_layers_and_left_as_it_was():
    model, x = Model(), torch.randn(3, 50, 4)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    numbers = torch.get_rng_state()
    found = trigru.explain(model, x, scale=2.0)
    assert {name: one.schedule for name, one in found.items()} == {"encoder": "eager", "cell": "cell"}
    assert str(found).startswith("encoder: schedule 'eager', variant 'torch', torch.float32 on cpu: ")
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not model.encoder._forward_pre_hooks
    assert str(trigru.explain(nn.Sequential(nn.Linear(4, 4)), x)) == "no trigru.GRU and no trigru.GRUCell"
    with pytest.raises(TypeError, match=r"expected a trigru.GRU.* got torch.nn.modules.rnn.GRU.*trigru.swap"):
        trigru.explain(nn.GRU(4, 6), x)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_a_layer_whose_weight_changes_where_it_is_looked_up_is_left_as_it_was(context):
    layer, x = nn.utils.parametrizations.spectral_norm(trigru.GRU(4, 6), "weight_hh_l0"), torch.randn(12, 2, 4)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    output, _ = layer.train()(x)
    layer.load_state_dict(before, strict=False)
    with context():
        trigru.explain(layer, x)
    assert len(before) == 2
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    torch.testing.assert_close(layer(x)[0], output)


@pytest.mark.parametrize("arguments", [(), (None,), (torch.zeros(6),)])
def test_the_function_is_explained_by_a_state_or_by_weights(arguments):
    x = torch.randn(12, 2, 4)
    with pytest.raises(TypeError, match=r"h0: expected a tensor \(batch, hidden_size\)"):
        trigru.explain(trigru.gru, x, *arguments)
    assert trigru.explain(trigru.gru, x, None, torch.randn(18, 4), torch.randn(18, 6)).schedule == "torch"


CONTEXTS = {
    "plain": torch.enable_grad,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast off": lambda: torch.autocast("cpu", torch.bfloat16, enabled=False),
}
LAYERS = {
    "plain": {},
    "both": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False},
    "cho": {"variant": "cho"},
    "recompute": {"memory": "recompute"},
    "by name": {"schedule": "eager"},
    "float64": {"dtype": torch.float64},
    "batch first": {"batch_first": True},
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_what_is_said_is_what_runs(options, context):
    for frozen, seq_len, packed in itertools.product([False, True], [1, 8, 20, 200], [False, True]):
        layer = trigru.GRU(4, 6, **options).requires_grad_(not frozen)
        x = torch.randn(seq_len, 3, 4, dtype=layer.weight_ih_l0.dtype)
        given = pack_sequence(list(x.unbind(1))) if packed else x.transpose(0, 1) if layer.batch_first else x
        with context():
            said = trigru.explain(layer, given)
            with torch.profiler.profile() as seen:
                output, _ = layer(given)
        names = {event.key for event in seen.key_averages()}
        assert (said.schedule == "torch") == ("aten::gru" in names), (frozen, seq_len, packed)
        assert (output.data if packed else output).dtype == said.dtype
