"""What happens to a module outside its forward: saved, copied, moved, initialised late, replicated."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from cases import error
from torch import nn

import trigru

MODULES = {
    "GRU": (nn.GRU, trigru.GRU, {"num_layers": 2, "bidirectional": True}),
    "GRU without bias": (nn.GRU, trigru.GRU, {"bias": False}),
    "GRUCell": (nn.GRUCell, trigru.GRUCell, {}),
    "GRUCell without bias": (nn.GRUCell, trigru.GRUCell, {"bias": False}),
}


def example(module):
    torch.manual_seed(3)
    return torch.randn(4, 5) if isinstance(module, (nn.GRUCell, trigru.GRUCell)) else torch.randn(3, 4, 5)


def outputs(module):
    out = module(example(module))
    return out if isinstance(out, tuple) else (out,)


def same(got, want):
    return all(error(g, w) <= 1e-5 for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("kind", MODULES)
def test_state_dicts_load_strictly_both_ways(kind):
    theirs_class, ours_class, options = MODULES[kind]
    theirs, ours = theirs_class(5, 7, **options), ours_class(5, 7, **options)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert same(outputs(ours), outputs(theirs))
    again = theirs_class(5, 7, **options)
    again.load_state_dict(ours.state_dict(), strict=True)
    assert same(outputs(again), outputs(theirs))
    assigned = ours_class(5, 7, **options, device="meta")
    assigned.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    assert same(outputs(assigned), outputs(theirs))
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours_class(5, 8, **options).load_state_dict(theirs.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({})


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_copies_and_files_hold_the_whole_module(kind, variant):
    _, ours_class, options = MODULES[kind]
    module = ours_class(5, 7, **options, variant=variant).eval()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert repr(twin) == repr(module)
        assert not twin.training
        assert all(a is not b for a, b in zip(twin.parameters(), module.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(outputs(twin), outputs(module), strict=True))


@pytest.mark.parametrize("kind", MODULES)
def test_a_pickle_of_nn_is_read_where_its_name_stands_for_trigru(kind, monkeypatch):
    theirs_class, ours_class, options = MODULES[kind]
    theirs = theirs_class(5, 7, **options)
    data = pickle.dumps(theirs)
    monkeypatch.setattr(nn.modules.rnn, theirs_class.__name__, ours_class)
    ours = pickle.loads(data)
    assert repr(ours) == repr(ours_class(5, 7, **options))
    assert same(outputs(ours), outputs(theirs))


@pytest.mark.parametrize("kind", MODULES)
def test_late_initialisation(kind):
    theirs_class, ours_class, options = MODULES[kind]
    made = []
    for cls in (theirs_class, ours_class):
        torch.manual_seed(1)
        made.append(cls(5, 7, **options, device="meta").to_empty(device="cpu"))
        made[-1].reset_parameters()
        with torch.device("meta"):
            module = cls(5, 7, **options)
        assert all(p.is_meta for p in module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))
    assert same(outputs(made[1]), outputs(made[0]))
    skipped = nn.utils.skip_init(ours_class, 5, 7, **options)
    skipped.load_state_dict(made[0].state_dict())
    assert same(outputs(skipped), outputs(made[0]))


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 2},
        {"groups": 2, "num_layers": 2},
        {"norm": "layer"},
        {"learn_initial_state": True},
        {"num_heads": 4, "groups": 2, "norm": "layer", "learn_initial_state": True, "bidirectional": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [trigru.GRU, trigru.GRUCell])
def test_new_values_are_those_of_a_new_module(cls, options):
    """And what is drawn next is, of a module that is made after it."""
    if cls is trigru.GRUCell:
        options = {"variant": "dreamer", "norm": options.get("norm")}
    torch.manual_seed(3)
    new, drawn_next = cls(6, 8, **options), torch.rand(3)
    late = cls(6, 8, **options, device="meta").to_empty(device="cpu")
    for parameter in late.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(3)
    late.reset_parameters()
    assert torch.equal(torch.rand(3), drawn_next)
    for name, value in new.named_parameters():
        assert torch.equal(value, late.get_parameter(name)), name


@pytest.mark.parametrize(("name", "options"), [("gain_l0", {"norm": "layer"}), ("h0", {"learn_initial_state": True})])
def test_a_parametrized_gain_or_initial_state_is_used(name, options):
    class Shifted(nn.Module):
        def forward(self, x):
            return x + 0.5

    plain, module = trigru.GRU(5, 7, **options), trigru.GRU(5, 7, **options)
    module.load_state_dict(plain.state_dict())
    said = module.extra_repr()
    nn.utils.parametrize.register_parametrization(module, name, Shifted())
    with torch.no_grad():
        getattr(plain, name).add_(0.5)
    assert same(outputs(module), outputs(plain))
    assert module.extra_repr() == said
    module.reset_parameters()
    assert torch.equal(getattr(module, name), torch.full_like(getattr(plain, name), 1.5 if name == "gain_l0" else 0.5))


class Counted(nn.Module):
    """Gives a weight, a new tensor each time, and counts how often."""

    times = 0

    def forward(self, x):
        self.times += 1
        return x.clone()


@pytest.mark.parametrize("call", ["padded", "packed", "short", "options", "cell", "dreamer"])
def test_a_parametrized_weight_is_computed_once_in_a_call(call):
    options = {"cell": {}, "dreamer": {"variant": "dreamer"}, "options": {"norm": "layer", "num_heads": 7}}.get(
        call, {}
    )
    is_cell = call in ("cell", "dreamer")
    module = (trigru.GRUCell if is_cell else trigru.GRU)(5, 7, **options)
    counts = {name: Counted() for name, _ in module.named_parameters()}
    for name, count in counts.items():
        nn.utils.parametrize.register_parametrization(module, name, count)
        count.times = 0
    x = torch.randn(2, 5) if is_cell else torch.randn(1 if call == "short" else 12, 2, 5)
    if call == "packed":
        x = nn.utils.rnn.pack_padded_sequence(x, [12, 4])
    for _ in range(2):
        module(x)
    assert {count.times for count in counts.values()} == {2}


@pytest.mark.parametrize("cls", [trigru.GRU, trigru.GRUCell])
def test_explain_leaves_what_steps_on_as_it_was(cls):
    module = cls(5, 7)
    nn.utils.parametrizations.spectral_norm(module, next(iter(module._parameters)))
    before = copy.deepcopy(module.state_dict())
    trigru.explain(module, torch.randn(2, 5))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_weights_lie_as_in_nn():
    theirs, ours = nn.GRU(5, 7, 2, bidirectional=True), trigru.GRU(5, 7, 2, bidirectional=True)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert [[w.shape for w in ws] for ws in ours.all_weights] == [[w.shape for w in ws] for ws in theirs.all_weights]


def test_flatten_parameters_is_accepted_and_harmless():
    module = trigru.GRU(5, 7)
    before = [p.data_ptr() for p in module.parameters()]
    want = outputs(module)
    assert module.flatten_parameters() is None
    assert [p.data_ptr() for p in module.parameters()] == before
    assert same(outputs(module), want)


def test_weights_that_are_replaced_or_moved_are_used():
    theirs, ours = nn.GRU(5, 7), trigru.GRU(5, 7)
    new = nn.Parameter(torch.randn(21, 7))
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.weight_hh_l0 = new
    assert same(outputs(ours), outputs(theirs))
    for module in (theirs, ours):
        module.bias_ih_l0.data = torch.zeros(21)
        module.double().float()
    assert same(outputs(ours), outputs(theirs))


@pytest.mark.parametrize("steps", [3, 40], ids=["torch's own", "eager"])
def test_a_list_in_place_of_the_flat_weights_is_not_read(steps):
    """Which nn.GRU computes with: the parameters by their names are used, in every schedule."""
    layer, x = trigru.GRU(3, 4), torch.randn(steps, 2, 3)
    want, _ = layer(x)
    layer._flat_weights = [w * 2 for w in layer._flat_weights]
    assert torch.equal(layer(x)[0], want)


def test_shared_memory():
    module = trigru.GRU(5, 7)
    want = outputs(module)
    assert module.share_memory() is module
    assert all(p.is_shared() for p in module.parameters())
    assert same(outputs(module), want)


def test_replicas_of_data_parallel_use_their_own_weights():
    module = trigru.GRU(5, 7)
    replica = module._replicate_for_data_parallel()
    copies = {name: p.detach().clone().requires_grad_() * 1 for name, p in module.named_parameters()}
    for name, value in copies.items():  # as nn.parallel.replicate: results of a broadcast, not parameters
        setattr(replica, name, value)
    assert same(outputs(replica), outputs(module))
    grads = torch.autograd.grad(outputs(replica)[0].sum(), list(copies.values()))
    want = torch.autograd.grad(outputs(module)[0].sum(), list(module.parameters()))
    assert same(grads, want)
    assert same(outputs(nn.DataParallel(module)), outputs(module))
