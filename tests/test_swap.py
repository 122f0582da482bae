"""`trigru.swap` and `trigru.unswap`: the same objects afterwards, the same numbers, and everything else left alone."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from cases import error
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import trigru


class Speller(nn.Module):
    """GRUs at several depths, one of them in two places, a tied weight, and a cell."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.encode = nn.ModuleDict({"up": nn.GRU(5, 6, num_layers=2, bidirectional=True, batch_first=True)})
        self.cells = nn.ModuleList([nn.GRUCell(12, 6)])
        self.decode = nn.GRU(6, 6, dropout=0.3, num_layers=2)
        self.also_decode = self.decode
        self.out = nn.Linear(6, 18)
        self.out.weight = self.decode.weight_hh_l1

    def forward(self, tokens):
        encoded, _ = self.encode["up"](self.embed(tokens))
        h = None
        for step in encoded.unbind(1):
            h = self.cells[0](step, h)
        decoded, _ = self.decode(h.expand(3, *h.shape))
        return self.out(self.also_decode(decoded)[0])


def results(model, *inputs):
    torch.manual_seed(5)
    out = model(*inputs)
    loss = out.square().sum()
    return [out, *torch.autograd.grad(loss, list(model.parameters()))]


def assert_same(got, want):
    assert all(error(g, w) <= 1e-5 for g, w in zip(got, want, strict=True))


def classes(model):
    return {type(m) for m in model.modules()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_swapped_model_gives_the_same_outputs_and_gradients(training):
    model = Speller().train(training)
    tokens = torch.randint(11, (4, 7))
    before = results(model, tokens)
    assert trigru.swap(model) is model
    assert {trigru.GRU, trigru.GRUCell} < classes(model)
    assert not {nn.GRU, nn.GRUCell} & classes(model)
    assert_same(results(model, tokens), before)
    assert trigru.unswap(model) is model
    assert {nn.GRU, nn.GRUCell} < classes(model)
    assert not {trigru.GRU, trigru.GRUCell} & classes(model)
    assert_same(results(model, tokens), before)


def test_parameters_names_flags_and_sharing_stay():
    model = Speller()
    model.decode.eval()
    model.decode.register_buffer("mark", torch.ones(2))
    modules = dict(model.named_modules())
    parameters, state, flags = dict(model.named_parameters()), model.state_dict(), [m.training for m in model.modules()]
    trigru.swap(model)
    assert list(model.state_dict()) == list(state)
    assert all(a is b for a, b in zip(model.parameters(), parameters.values(), strict=True))
    assert dict(model.named_modules()) == modules
    assert model.decode is model.also_decode
    assert model.out.weight is model.decode.weight_hh_l1
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(model.decode.mark, torch.ones(2))
    model.load_state_dict(state)


def test_an_optimiser_made_before_trains_the_swapped_model():
    model, tokens = Speller().eval(), torch.randint(11, (4, 7))
    twin = copy.deepcopy(model)
    for m, swapped in ((model, True), (twin, False)):
        optimiser = torch.optim.SGD(m.parameters(), lr=0.1)
        if swapped:
            trigru.swap(m)
        for _ in range(3):
            optimiser.zero_grad()
            m(tokens).square().mean().backward()
            optimiser.step()
    assert_same(list(model.parameters()), list(twin.parameters()))


def test_hooks_keep_firing():
    layer, fired = nn.GRU(5, 7), []
    layer.register_forward_pre_hook(lambda m, args: fired.append("pre"))
    layer.register_forward_hook(lambda m, args, out: fired.append("forward"))
    layer.register_full_backward_hook(lambda m, grad_in, grad_out: fired.append("backward"))
    layer.register_state_dict_post_hook(lambda m, *args: fired.append("state_dict"))
    layer.register_load_state_dict_post_hook(lambda m, keys: fired.append("load"))
    layer.weight_hh_l0.register_hook(lambda grad: fired.append("tensor"))
    trigru.swap(layer)
    layer(torch.randn(3, 2, 5))[0].sum().backward()
    layer.load_state_dict(layer.state_dict())
    assert sorted(fired) == ["backward", "forward", "load", "pre", "state_dict", "tensor"]


def test_the_model_itself_may_be_a_gru():
    layer = nn.GRU(5, 7)
    assert trigru.swap(layer, schedule="eager") is layer
    assert (type(layer), layer.variant, layer.schedule) == (trigru.GRU, "torch", "eager")
    cell = trigru.swap(nn.GRUCell(5, 7))
    assert (type(cell), cell.variant) == (trigru.GRUCell, "torch")


def test_swapping_twice_changes_nothing_and_modules_of_trigru_stay():
    model = nn.Sequential(nn.GRU(5, 7), trigru.GRU(5, 7, variant="cho"))
    trigru.swap(trigru.swap(model, schedule="eager"))
    assert [m.variant for m in model] == ["torch", "cho"]
    assert [m.schedule for m in model] == ["eager", "auto"]


def test_swapping_back_leaves_nothing_behind():
    plain = nn.GRU(5, 7)
    for layer in (trigru.GRU(5, 7), trigru.swap(nn.GRU(5, 7))):
        assert vars(trigru.unswap(layer)).keys() == vars(plain).keys()
    assert vars(trigru.unswap(trigru.GRUCell(5, 7))).keys() == vars(nn.GRUCell(5, 7)).keys()


def test_a_variant_is_computed_and_cannot_be_swapped_back():
    model = trigru.swap(nn.Sequential(nn.GRU(5, 7), nn.GRUCell(5, 7)), variant="cho")
    x = torch.randn(3, 2, 5)
    want = trigru.gru(x, torch.zeros(2, 7), *model[0].parameters(), variant="cho")[0]
    assert error(model[0](x)[0], want) == 0
    assert model[1].variant == "cho"
    with pytest.raises(ValueError, match=r"variant: expected 'torch' in 0 .*, got 'cho'"):
        trigru.unswap(model)
    assert type(model[0]) is trigru.GRU


def test_what_is_asked_for_wrongly_is_an_error_before_anything_changes():
    layer = nn.GRU(5, 7)
    with pytest.raises(ValueError, match="variant: expected one of"):
        trigru.swap(layer, variant="gru")
    with pytest.raises(ValueError, match="schedule: expected one of"):
        trigru.swap(layer, schedule="fast")
    assert type(layer) is nn.GRU


class OwnGRU(nn.GRU):
    pass


class OwnCell(nn.GRUCell):
    pass


def test_subclasses_quantised_and_patched_modules_are_left_alone_and_reported(caplog):
    patched = nn.GRU(5, 7)
    patched.forward = patched.forward
    quantised = torch.ao.nn.quantized.dynamic.GRU(5, 7)
    model = nn.Sequential(OwnGRU(5, 7), OwnCell(5, 7), quantised, patched, nn.GRU(5, 7), nn.LSTM(5, 7))
    kinds = [type(m) for m in model]
    with caplog.at_level(logging.INFO, logger="trigru"):
        trigru.swap(model)
    assert [type(m) for m in model] == [*kinds[:4], trigru.GRU, nn.LSTM]
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["WARNING"] * 4 + ["INFO"]
    for (_, message), part in zip(
        told,
        ("OwnGRU), a subclass of GRU", "OwnCell), a subclass of GRUCell", "quantised", "forward", "swapped: 4"),
        strict=True,
    ):
        assert part in message


def scaled(module, name):
    class Half(nn.Module):
        def forward(self, w):
            return w / 2

    parametrize.register_parametrization(module, name, Half())


WRAPS = {
    "parametrize": lambda m: scaled(m, "weight_hh_l0"),
    "parametrized twice": lambda m: (scaled(m, "weight_hh_l0"), scaled(m, "bias_ih_l0")),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "hook weight_norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "hook spectral_norm": lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_parametrised_modules_work_wrapped_before_or_after_the_swap(wrap, when):
    theirs, ours = nn.GRU(5, 7), nn.GRU(5, 7)
    ours.load_state_dict(theirs.state_dict())
    for module, swapped in ((theirs, False), (ours, True)):
        if swapped and when == "after":
            trigru.swap(module)
        torch.manual_seed(2)
        WRAPS[wrap](module)
        if swapped and when == "before":
            trigru.swap(module)
        module.eval()  # spectral_norm iterates in training
    assert isinstance(ours, trigru.GRU)
    assert not isinstance(ours, nn.GRU)

    def call(module):
        torch.manual_seed(3)
        x = torch.randn(4, 2, 5)
        out = module(x)[0]
        return [out, *torch.autograd.grad(out.square().sum(), list(module.parameters()))]

    assert_same(call(ours), call(theirs))
    if "hook" not in wrap:  # torch copies no module whose weight such a hook computes
        assert_same(call(copy.deepcopy(ours)), call(theirs))
    trigru.unswap(ours)
    assert isinstance(ours, nn.GRU)
    assert_same(call(ours), call(theirs))


def test_a_parametrisation_can_be_removed_after_the_swap():
    layer = nn.GRU(5, 7)
    scaled(layer, "weight_hh_l0")
    trigru.swap(layer)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is trigru.GRU
    layer(torch.randn(3, 2, 5))


def test_swapped_modules_are_pickled_and_copied_as_trigru_modules():
    layer = trigru.swap(nn.GRU(5, 7, 2))
    x = torch.randn(3, 2, 5)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(twin) is trigru.GRU
        assert torch.equal(twin(x)[0], layer(x)[0])
    back = trigru.unswap(copy.deepcopy(layer)).double()
    assert error(back(x.double())[0], layer(x)[0]) <= 1e-5
    assert repr(layer) == f"trigru.{back!r}"
