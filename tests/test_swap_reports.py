"""What `trigru.swap` says of what it did, and code of others that goes by a module's class."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import trigru


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.ModuleList([nn.GRU(5, 7), nn.GRU(7, 7)])
        self.cell = nn.GRUCell(7, 7)
        self.out = nn.Linear(7, 3)


class OwnGRU(nn.GRU):
    pass


@pytest.fixture
def quiet():
    """No warning passes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_each_swapped_module_is_logged_by_name_and_number(caplog, quiet):
    with caplog.at_level(logging.INFO, logger="trigru.swap"):
        trigru.swap(Model())
    told = [record.getMessage() for record in caplog.records]
    for number, (message, name) in enumerate(zip(told, ("encode.0", "encode.1", "cell"), strict=True), 1):
        assert message.startswith(f"swapped: {name} (torch.nn.modules.rnn.GRU")
        assert message.endswith(f", {number} of 3")


def test_what_is_printed_shows_whose_the_modules_are():
    model = trigru.swap(Model())
    assert repr(model).count("trigru.GRU(") == 2
    assert "(cell): trigru.GRUCell(7, 7)" in repr(model)
    assert "trigru" not in repr(trigru.unswap(model))
    assert repr(trigru.GRU(3, 4, num_layers=2, variant="cho")) == "trigru.GRU(3, 4, num_layers=2, variant='cho')"
    parametrised = parametrizations.orthogonal(trigru.GRU(3, 4), "weight_hh_l0")
    assert repr(parametrised).startswith("trigru.ParametrizedGRU(")
    assert repr(trigru.convert.ReverseGRU(3, 4)) == "ReverseGRU(3, 4)"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: nn.Sequential(nn.Linear(3, 4)),
            "Sequential: expected an nn.GRU or nn.GRUCell .*, got no recurrent",
        ),
        (lambda: nn.LSTM(3, 4), r"LSTM: expected .*, got the model itself \(torch.nn.modules.rnn.LSTM\)"),
        (
            lambda: nn.ModuleDict({"a": nn.LSTM(3, 4), "b": nn.RNNCell(3, 4)}),
            r"got a \(torch.nn.modules.rnn.LSTM\), b \(torch.nn.modules.rnn.RNNCell\)",
        ),
        (
            lambda: nn.ModuleList([type("OwnGRU", (nn.GRU,), {})(3, 4)]),
            r"; left alone: 0 \(.*OwnGRU\), a subclass of GRU",
        ),
    ],
    ids=["no layers", "an LSTM", "others", "a subclass"],
)
def test_a_model_without_a_gru_gives_a_warning(make, said):
    with pytest.warns(UserWarning, match=f"^swap: nothing was swapped in .*{said}") as seen:
        trigru.swap(make())
    assert [w.filename for w in seen] == [__file__]


def test_a_filter_that_leaves_nothing_gives_a_warning_with_the_names():
    with pytest.warns(UserWarning, match=r"left alone: encode.0 \(.*\), by filter_fn, encode.1 .*, by filter_fn, cell"):
        trigru.swap(Model(), filter_fn=lambda module, name: False)


def test_a_swapped_model_gives_no_warning(quiet):
    trigru.swap(trigru.swap(Model()))
    trigru.swap(trigru.GRU(3, 4))


def test_the_filter_sees_each_gru_with_its_name_and_decides(quiet):
    model, seen = Model(), []
    modules = dict(model.named_modules())

    def last_layer_only(module, name):
        seen.append(name)
        assert modules[name] is module
        return name == "encode.1"

    trigru.swap(model, filter_fn=last_layer_only)
    assert seen == ["encode.0", "encode.1", "cell"]
    assert [type(m) for m in (*model.encode, model.cell)] == [nn.GRU, trigru.GRU, nn.GRUCell]
    layer = nn.GRU(3, 4)
    trigru.swap(layer, filter_fn=lambda module, name: name == "")
    assert type(layer) is trigru.GRU


def test_memory_is_set_and_checked(quiet):
    model = trigru.swap(Model(), memory="recompute")
    assert [layer.memory for layer in model.encode] == ["recompute"] * 2
    assert not hasattr(model.cell, "memory")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        trigru.GRU(5, 7)(torch.randn(9, 2, 5))
        count, kept = sum(t.numel() for t in kept), []
        model.encode[0](torch.randn(9, 2, 5))
    assert sum(t.numel() for t in kept) < count
    assert "memory" not in vars(trigru.unswap(model).encode[0])
    model = Model()
    with pytest.raises(ValueError, match="memory: expected"):
        trigru.swap(model, memory="less")
    assert type(model.cell) is nn.GRUCell


def test_unswap_reports_what_it_cannot_swap_back(caplog):
    model = nn.ModuleList([trigru.GRU(3, 4), trigru.convert.ReverseGRU(3, 4)])
    with caplog.at_level(logging.WARNING, logger="trigru.swap"):
        trigru.unswap(model)
    assert [type(m) for m in model] == [nn.GRU, trigru.convert.ReverseGRU]
    (record,) = caplog.records
    assert "left alone: 1 (trigru.convert.reverse.ReverseGRU), a subclass of trigru's" in record.getMessage()


@pytest.mark.parametrize("first", ["trigru", "opacus.validators"])
def test_opacus_is_told_whichever_is_imported_first(tmp_path, first):
    """In a process of its own, with a package in opacus' place that has its two registries."""
    room = tmp_path / "opacus" / "validators"
    room.mkdir(parents=True)
    (tmp_path / "opacus" / "__init__.py").write_text("")
    (room / "__init__.py").write_text("""
from torch import nn

class ModuleValidator:
    VALIDATORS = {nn.GRU: lambda module: ["replace it"]}
    FIXERS = {nn.GRU: lambda module: (type(module), module.weight_ih_l0)}

register_module_validator = lambda cls: lambda f: ModuleValidator.VALIDATORS.update({cls: f})
register_module_fixer = lambda cls: lambda f: ModuleValidator.FIXERS.update({cls: f})
""")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import {first}
assert {first == "trigru"} == ("opacus" not in sys.modules)
import trigru
from opacus.validators import ModuleValidator
from torch import nn
layer = trigru.GRU(3, 4)
assert ModuleValidator.VALIDATORS[trigru.GRU](layer) == ["replace it"]
assert ModuleValidator.FIXERS[trigru.GRU](layer) == (nn.GRU, layer.weight_ih_l0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_model_of_opacus_is_found_and_fixed():
    validators = pytest.importorskip("opacus.validators")
    from opacus.layers import DPGRU

    model = nn.ModuleDict({"gru": nn.GRU(3, 4, batch_first=True), "out": nn.Linear(4, 2)})
    want = validators.ModuleValidator.validate(model)
    trigru.swap(model)
    found = validators.ModuleValidator.validate(model)
    assert [str(e) for e in found] == [str(e) for e in want]
    assert found
    fixed = validators.ModuleValidator.fix(model)
    assert type(fixed["gru"]) is DPGRU
    assert type(model["gru"]) is trigru.GRU
    x = torch.randn(2, 9, 3)
    torch.testing.assert_close(fixed["gru"](x)[0], model["gru"](x)[0])


def test_a_swapped_module_of_torchrl_gives_what_it_gave():
    rl = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    holder = rl.GRUModule(3, 4, in_keys=["x", "h", "is_init"], out_keys=["y", ("next", "h")])
    is_init = torch.zeros(2, 9, 1, dtype=torch.bool)
    is_init[0, 5] = True  # an episode that ends within its sequence
    given = {"x": torch.randn(2, 9, 3), "h": torch.zeros(2, 9, 1, 4), "is_init": is_init}

    def run():
        with rl.set_recurrent_mode(True):
            return holder(tensordict.TensorDict(given, batch_size=[2, 9]))["y"]

    want = run()
    trigru.swap(holder)
    assert type(holder.gru) is trigru.GRU
    torch.testing.assert_close(run(), want)
    torch.testing.assert_close(trigru.unswap(holder) and run(), want)
