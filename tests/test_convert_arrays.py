"""trigru.convert: arrays that are none, named: ragged, sparse, empty, masked; modules that weights do not describe."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from other_libraries import converters, leaves
from test_convert import FRESH, NAMES, replaced
from torch import nn

import trigru
from trigru import convert


class Unreadable:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no values here")


class Sparse:
    """As those of scipy, which numpy takes for one object."""


def quantised(a):
    a = torch.from_numpy(np.atleast_2d(a)).float()
    return torch.quantize_per_tensor(a, 0.1, 0, torch.qint8)


# By what is wrong: a right array made wrong, and what the error says of it.
WRONG = {
    "none": (lambda a: None, "expected an array"),
    "ragged": (
        lambda a: [[1.0, 2.0], [3.0]],
        "expected an array, got list, which .*: .*inhomogeneous",
    ),
    "a scalar": (lambda a: 1.0, "expected shape"),
    "a string": (lambda a: "weights", "expected a floating dtype, got <U7"),
    "a dict": (lambda a: {"a": a}, "expected an array of numbers, got dict"),
    "unreadable": (lambda a: Unreadable(), "expected an array, got Unreadable, which .*: no values here"),
    "sparse, of scipy": (lambda a: Sparse(), "expected an array of numbers, got Sparse"),
    "sparse": (lambda a: torch.from_numpy(a).to_sparse(), "expected a dense array, got layout torch.sparse_coo"),
    "nested": (lambda a: torch.nested.nested_tensor([torch.ones(2)]), "expected a dense array, got a nested tensor"),
    "quantised": (lambda a: quantised(a), "expected a dense array, got a quantised tensor"),
    "meta": (lambda a: torch.from_numpy(a).to("meta"), "expected a dense array, got a tensor without values"),
    "empty": (lambda a: a[..., :0], r"expected shape \(.*\)( without a size of 0)?, got \(.*0,?\)"),
    "no rows": (lambda a: a[:0], r"expected shape \(.*\)( without a size of 0)?, got \(0"),
    "no axes": (lambda a: np.ones(()), r"expected shape \(.*\), got \(\)"),
    "masked": (lambda a: np.ma.masked_greater(a, -1e9), "expected an array with all its values, got a masked one"),
    "complex": (lambda a: a + 0j, "expected a floating dtype, got complex128"),
    "bool": (lambda a: a > 0, "expected a floating dtype, got bool"),
    "longer floats": (lambda a: a.astype(np.longdouble), r"expected one of torch.float16, .*, got float128"),
    "eight bits": (lambda a: torch.from_numpy(a).to(torch.float8_e5m2), r"expected one of torch.float16, .*, got"),
}
OPTIONAL = {"lecture": ("b_r", "b_z", "b_h"), "equinox": ("bias", "bias_n"), "onnx": ("B",)}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of nested and quantised tensors
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("library", "path"), [(library, path) for library in NAMES for path in NAMES[library]])
def test_what_is_no_array_is_named(library, path, wrong):
    make, message = WRONG[wrong]
    if wrong == "none" and path in OPTIONAL.get(library, ()):
        pytest.skip("None is how this array is left out")
    if wrong == "longer floats" and np.dtype(np.longdouble) == np.float64:
        pytest.skip("longdouble is float64 here")
    read, arrays = converters(library)[0], FRESH[library]()
    right = leaves(arrays)[path]
    with pytest.raises(ValueError, match=message) as caught:
        read(replaced(arrays, path, make(right)))
    # The array itself, or, where its sizes came first, one that does not fit it.
    said = str(caught.value).partition(":")[0]
    assert said == NAMES[library][path] or (wrong in ("empty", "no rows") and said in NAMES[library].values())


@pytest.mark.parametrize("read", [convert.from_flax_linen, convert.from_flax_nnx])
@pytest.mark.parametrize("given", [None, [1, 2], np.ones((2, 2)), {}, {"hr": np.ones((7, 7))}, {"dense_i": 3.0}])
def test_parameters_that_are_no_mapping_of_mappings_are_refused(read, given):
    with pytest.raises(ValueError, match=r"^(parameters: expected a mapping|\S+: expected (in|no such array))"):
        read(given)


@pytest.mark.parametrize(("library", "path"), [("linen", "hr.bias"), ("linen", "hx.kernel"), ("nnx", "dense_h.bias")])
def test_an_array_that_would_be_dropped_is_refused(library, path):
    """Of another cell, or of a later version of this one."""
    outer, inner = path.split(".")
    arrays = FRESH[library]()
    arrays[outer] = {**arrays.get(outer, {}), inner: np.ones(7)}
    with pytest.raises(ValueError, match=rf"^{path}: expected no such array in a GRUCell"):
        converters(library)[0](arrays)


@pytest.mark.parametrize("name", ["gate_fn", "activation_fn"])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_activations_of_flax_are_checked(library, name):
    read = convert.from_flax_linen if library == "linen" else convert.from_flax_nnx
    right = {"gate_fn": lambda x: 1 / (1 + np.exp(-x)), "activation_fn": np.tanh}
    with np.errstate(over="ignore"):
        read(FRESH[library](), **right)
    wanted = {"gate_fn": "sigmoid", "activation_fn": "tanh"}[name]
    with pytest.raises(ValueError, match=f"{name}: expected {wanted}, got hard"):
        read(FRESH[library](), **{name: lambda_named("hard", lambda x: np.clip(0.2 * x + 0.5, 0, 1))})


def lambda_named(name, function):
    function.__name__ = name
    return function


def test_zoneout_of_haste_is_refused():
    with pytest.raises(ValueError, match=r"zoneout: expected 0, got 0.1"):
        convert.from_haste(**FRESH["haste"](), zoneout=0.1)
    convert.from_haste(**FRESH["haste"](), zoneout=0.0)


class Own(nn.GRU):
    def forward(self, input, hx=None):
        return super().forward(-input, hx)


class OwnCell(trigru.GRUCell):
    def forward(self, input, hx=None):
        return super().forward(-input, hx)


class OwnStart(nn.GRU):
    """A subclass that computes as its parent: with other numbers to begin with."""

    def __init__(self, *args):
        super().__init__(*args)
        nn.init.orthogonal_(self.weight_hh_l0)


def patched():
    layer = nn.GRU(5, 7)
    layer.forward = layer.forward
    return layer


WRITERS = [
    convert.to_keras,
    convert.to_onnx,
    convert.to_haste,
    convert.to_equinox,
    convert.to_flax_linen,
    convert.to_torchrl,
    convert.to_cell,
    convert.from_torchrl,
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("make", [lambda: Own(5, 7), lambda: OwnCell(5, 7), patched], ids=["own", "cell", "patched"])
def test_a_forward_of_its_own_is_refused(write, make):
    with pytest.raises(TypeError, match=r"module: expected a GRU .*, got \w+ with a forward of its own"):
        write(make())


def test_a_subclass_that_computes_as_its_parent_is_read():
    module = OwnStart(5, 7)
    x = torch.randn(4, 2, 5)
    torch.testing.assert_close(convert.split_layers(module)[0](x), module(x))


CHANGED = {
    "another shape": (lambda p: torch.ones(1, 7), r"weight_hh_l1: expected shape \(21, 7\), got \(1, 7\)"),
    "another dtype": (lambda p: p.double(), r"weight_hh_l1: expected dtype torch.float32 .*, got torch.float64"),
    "no values": (lambda p: p.to("meta"), "weight_hh_l1: expected a dense array, got a tensor without values"),
    "sparse": (lambda p: p.to_sparse(), "weight_hh_l1: expected a dense array, got layout"),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("read", [convert.split_layers, convert.to_torchrl, lambda m: convert.stack_layers([m])])
def test_a_weight_that_does_not_fit_its_module_is_named(read, change):
    """Copying would broadcast it, or round it, without a word."""
    make, message = CHANGED[change]
    module = nn.GRU(5, 7, 2)
    del module.weight_hh_l1
    module.register_parameter("weight_hh_l1", nn.Parameter(make(torch.ones(21, 7))))
    with pytest.raises(ValueError, match=message):
        read(module)


REFUSED = {
    "no modules": (lambda: convert.stack_layers([]), "modules: expected one GRU or more, got none"),
    "a later one in reverse": (
        lambda: convert.stack_layers([trigru.GRU(5, 7), convert.ReverseGRU(7, 7)]),
        r"modules\[1\]: expected a GRU that runs forward or both ways, got ReverseGRU",
    ),
    "the forward one in reverse": (
        lambda: convert.join_directions(convert.ReverseGRU(5, 7), trigru.GRU(5, 7)),
        "forward: expected a GRU that runs forward, got ReverseGRU",
    ),
    "reverse to torchrl": (
        lambda: convert.to_torchrl(convert.ReverseGRU(5, 7)),
        "direction: expected forward or both, got reverse",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_directions_and_numbers_of_modules_are_checked(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_schedule_and_memory_are_kept():
    first, second = trigru.GRU(5, 7, schedule="eager", memory="recompute"), trigru.GRU(7, 7)
    for module in (convert.stack_layers([first, second]), convert.join_directions(first, trigru.GRU(5, 7))):
        assert (module.schedule, module.memory, module.dropout) == ("eager", "recompute", 0)


def test_a_module_with_more_than_its_gru_is_no_holder_of_torchrl():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(5, 7), nn.Linear(7, 3)

    with pytest.raises(TypeError, match=r"^module: expected torchrl's GRUModule itself, .*Model: pass its gru"):
        convert.from_torchrl(Model())
    holder = nn.Module()
    holder.gru, holder.out = nn.GRU(5, 7), nn.Linear(7, 3)
    with pytest.raises(TypeError, match=r"^module: expected torchrl's GRUModule itself"):
        convert.from_torchrl(holder)


def test_rounding_that_torchrl_adds_is_refused():
    holder = nn.Module()
    holder.gru = nn.GRU(5, 7)
    holder.recurrent_compute_dtype = torch.bfloat16
    convert.from_torchrl(holder)  # other backends do not look at it
    holder.recurrent_backend = "triton"
    with pytest.raises(ValueError, match=r"^recurrent_compute_dtype: expected torch.float32, got torch.bfloat16"):
        convert.from_torchrl(holder)


def test_without_ml_dtypes_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        convert.to_haste(trigru.GRU(5, 7, dtype=torch.bfloat16))
