"""trigru.convert: the libraries' equations as they document them, in float64, and what holds for all converters."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import error
from other_libraries import (
    CONVERTERS,
    FROM,
    HIDDEN,
    INPUT,
    TOLERANCE,
    converters,
    equinox_arrays,
    haste_arrays,
    kernel_arrays,
    leaves,
    linen_params,
    nnx_state,
    numbers,
    run,
)
from torch import nn

import trigru
import trigru.convert
from trigru import convert


@pytest.mark.parametrize("library", FROM)
def test_arrays_of_a_library_give_its_results_here_and_come_back(library):
    fresh, step, variant = FROM[library]
    read, write = converters(library)
    arrays = fresh()
    module = read(arrays)
    assert type(module) is trigru.GRU
    assert (module.variant, module.input_size, module.hidden_size) == (variant, INPUT, HIDDEN)
    assert (module.num_layers, module.bidirectional, module.batch_first) == (1, False, False)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    assert error(module(x)[0], run(step, arrays, x)) <= TOLERANCE

    back = leaves(write(module))
    assert {name: value.dtype for name, value in back.items()} == dict.fromkeys(back, np.dtype(np.float64))
    for name, value in leaves(arrays).items():
        np.testing.assert_array_equal(back.pop(name), value)
    assert not any(value.any() for value in back.values())  # the biases that were not given


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("library", [name for name in FROM if name in CONVERTERS])
def test_a_library_gives_the_results_of_a_module_from_its_arrays(library, bias):
    _, step, variant = FROM[library]
    read, write = converters(library)
    module = trigru.GRU(INPUT, HIDDEN, bias=bias, dtype=torch.float64, variant=variant)
    if library == "nnx" and bias:
        with torch.no_grad():
            module.bias_hh_l0[2 * HIDDEN :] = 0
    arrays = write(module)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    assert error(run(step, arrays, x), module(x)[0]) <= TOLERANCE
    arrays = {k: v for k, v in arrays.items() if v is not None} if isinstance(arrays, dict) else arrays
    assert error(read(arrays)(x)[0], module(x)[0]) <= TOLERANCE


@pytest.mark.parametrize("library", ["lecture", "keras, reset before"])
@pytest.mark.parametrize("variant", ["cho", "chung"])
def test_cho_and_chung_are_written_as_what_the_library_has(library, variant):
    _, step, _ = FROM[library]
    _, write = converters(library)
    module = trigru.GRU(INPUT, HIDDEN, dtype=torch.float64, variant=variant)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    assert error(run(step, write(module), x), module(x)[0]) <= TOLERANCE


@pytest.mark.parametrize("variant", ["cho", "chung"])
@pytest.mark.parametrize(
    "write", [convert.to_flax_linen, convert.to_flax_nnx, convert.to_equinox, convert.to_haste, convert.to_torchrl]
)
def test_variants_that_the_library_has_not_are_refused(write, variant):
    with pytest.raises(ValueError, match=f"variant: expected 'torch', got '{variant}', and no weights make them equal"):
        write(trigru.GRU(INPUT, HIDDEN, variant=variant))


def test_the_lecture_refuses_the_equations_of_torch():
    with pytest.raises(ValueError, match="variant: expected 'chung', got 'torch', and no weights make them equal"):
        convert.to_concatenated(nn.GRU(INPUT, HIDDEN))


def test_nnx_refuses_a_bias_that_it_has_not():
    with pytest.raises(ValueError, match="bias_hh: expected zeros in its last 7 values"):
        convert.to_flax_nnx(trigru.GRU(INPUT, HIDDEN))


MODULES = {
    "nn.GRU": lambda: nn.GRU(INPUT, HIDDEN),
    "nn.GRUCell": lambda: nn.GRUCell(INPUT, HIDDEN),
    "trigru.GRUCell": lambda: trigru.GRUCell(INPUT, HIDDEN),
}


@pytest.mark.parametrize("make", list(MODULES.values()), ids=MODULES)
def test_modules_of_torch_and_cells_are_written_as_a_layer(make):
    module = make()
    cell = isinstance(module, nn.RNNCellBase)
    layer = convert.from_cell(module) if cell else trigru.swap(make())
    if not cell:
        layer.load_state_dict(module.state_dict())
    for got, want in zip(convert.to_keras(module), convert.to_keras(layer), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", [trigru.GRU, trigru.GRUCell])
@pytest.mark.parametrize(("variant", "other"), [("cho", "chung"), ("chung", "cho"), ("torch", "torch")])
def test_the_variants_that_can_are_exchanged(kind, variant, other):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True} if kind is trigru.GRU else {}
    module = kind(INPUT, HIDDEN, dtype=torch.float64, variant=variant, **options).eval()
    twin = convert.to_variant(module, other)
    assert type(twin) is kind
    assert twin.variant == other
    assert not twin.training
    x = torch.randn((4, 3, INPUT) if options else (4, INPUT), dtype=torch.float64)
    results = (module(x), twin(x)) if options else ([module(x)], [twin(x)])
    for want, got in zip(*results, strict=True):
        assert error(got, want) <= TOLERANCE
    back = convert.to_variant(twin, variant)
    for name, value in module.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


@pytest.mark.parametrize("pair", [("torch", "cho"), ("torch", "chung"), ("cho", "torch"), ("chung", "torch")])
def test_other_variants_are_refused(pair):
    with pytest.raises(ValueError, match="no weights make them equal: 'torch' multiplies by the reset gate after"):
        convert.to_variant(trigru.GRU(INPUT, HIDDEN, variant=pair[0]), pair[1])


def test_a_module_keeps_its_options_under_another_variant():
    options = {"num_layers": 2, "dropout": 0.5, "schedule": "eager", "memory": "recompute", "batch_first": True}
    module = convert.to_variant(trigru.GRU(INPUT, HIDDEN, variant="cho", **options), "chung")
    assert {name: getattr(module, name) for name in options} == options
    assert type(convert.to_variant(convert.ReverseGRU(5, 7, variant="cho"), "chung")) is convert.ReverseGRU


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", [nn.GRUCell, trigru.GRUCell])
def test_cells_and_layers(kind, bias):
    cell = kind(INPUT, HIDDEN, bias, dtype=torch.float64)
    layer = convert.from_cell(cell)
    x = torch.randn(4, 3, INPUT, dtype=torch.float64)
    h, states = torch.zeros(3, HIDDEN, dtype=torch.float64), []
    for x_t in x:
        h = cell(x_t, h)
        states.append(h)
    assert error(layer(x)[0], torch.stack(states)) <= TOLERANCE
    back = convert.to_cell(layer)
    for name, value in cell.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [nn.GRU, trigru.GRU])
def test_layers_are_split_and_stacked(kind, bidirectional):
    module = kind(INPUT, HIDDEN, 3, dropout=0.5, bidirectional=bidirectional, batch_first=True, dtype=torch.float64)
    parts = convert.split_layers(module.eval())
    x = torch.randn(4, 3, INPUT, dtype=torch.float64)
    y = x
    for part in parts:
        assert (part.num_layers, part.dropout) == (1, 0)
        y = part(y)[0]
    assert error(y, module(x)[0]) <= TOLERANCE
    whole = convert.stack_layers(parts, dropout=0.5)
    assert (whole.dropout, whole.batch_first) == (0.5, True)
    assert whole.state_dict().keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(whole.state_dict()[name], value)


def test_parts_draw_where_the_whole_does():
    """As copies: in evaluation what was made of a module in evaluation, at the rates of all that it was made of."""
    one, both = (trigru.GRU(5, 7, recurrent_dropout=0.5, bidirectional=two).eval() for two in (False, True))
    two = convert.split_directions(both)
    made = [convert.stack_layers([one, trigru.GRU(7, 7, recurrent_dropout=0.5)]), *convert.split_layers(one)]
    made += [*two, convert.join_directions(*two)]
    assert not any(module.training for module in made)
    assert {module.further()["recurrent_dropout"] for module in made} == {0.5}
    with pytest.raises(ValueError, match=r"modules\[1\].recurrent_dropout: expected 0.5 as the first module, got 0.0"):
        convert.stack_layers([one, trigru.GRU(7, 7)])
    assert convert.split_layers(one.train())[0].training


def test_directions_are_split_and_joined():
    module = nn.GRU(INPUT, HIDDEN, bidirectional=True, batch_first=True, dtype=torch.float64)
    parts = convert.split_directions(module)
    whole = convert.join_directions(*parts)
    x = torch.randn(4, 3, INPUT, dtype=torch.float64)
    want = torch.cat([parts[0](x)[0], parts[1](x.flip(1))[0].flip(1)], -1)
    for result in (module(x)[0], whole(x)[0]):
        assert error(result, want) <= TOLERANCE


def test_what_torchrl_holds_keeps_its_layers_and_options():
    options = {"num_layers": 2, "batch_first": True, "dropout": 0.5, "bidirectional": True, "bias": False}
    holder = nn.Module()
    holder.gru = nn.GRU(INPUT, HIDDEN, **options)
    module = convert.from_torchrl(holder)
    assert {name: getattr(module, name) for name in options} == options
    for name, value in convert.to_torchrl(module).items():
        assert torch.equal(holder.state_dict()[name], value)


def gru(*sizes, **options):
    return trigru.GRU(*(sizes or (INPUT, HIDDEN)), **options)


REFUSED = {
    "stack: width": (lambda: convert.stack_layers([gru(), gru()]), r"modules\[1\].input_size: expected 7, got 5"),
    "stack: hidden": (
        lambda: convert.stack_layers([gru(), gru(7, 8)]),
        r"modules\[1\].hidden_size: expected 7 .* got 8",
    ),
    "stack: variant": (
        lambda: convert.stack_layers([gru(), gru(7, 7, variant="cho")]),
        r"modules\[1\].variant: expected 'torch' as the first module, got 'cho'",
    ),
    "stack: reverse": (
        lambda: convert.stack_layers([convert.ReverseGRU(5, 7)]),
        r"modules\[0\]: expected .* ReverseGRU",
    ),
    "join: bias": (lambda: convert.join_directions(gru(), gru(bias=False)), "reverse.bias: expected True .* got False"),
    "join: input": (lambda: convert.join_directions(gru(), gru(6, 7)), "reverse.input_size: expected 5, got 6"),
    "join: layers": (lambda: convert.join_directions(gru(num_layers=2), gru()), "forward: expected one layer and one"),
    "split": (lambda: convert.split_directions(gru()), "module: expected one layer and both directions"),
    "reverse: layers": (lambda: convert.ReverseGRU(5, 7, 2), "num_layers: expected 1 in a reverse GRU, got 2"),
    "reverse: both": (lambda: convert.ReverseGRU(5, 7, bidirectional=True), "bidirectional: expected False"),
    "keras: layers": (lambda: convert.to_keras(gru(num_layers=2)), "num_layers: expected 1, got 2"),
    "keras: reverse": (lambda: convert.to_keras(convert.ReverseGRU(5, 7)), "direction: expected forward or both"),
    "haste: both": (lambda: convert.to_haste(gru(bidirectional=True)), "direction: expected forward, got both"),
    "haste: reverse": (lambda: convert.to_haste(convert.ReverseGRU(5, 7)), "direction: expected forward, got reverse"),
    "unknown variant": (lambda: convert.to_variant(gru(), "gru"), "variant: expected one of"),
    "equinox: one bias": (
        lambda: convert.from_equinox(np.ones((21, 5)), np.ones((21, 7)), np.ones(21)),
        "bias_n: expected with the other bias",
    ),
    "lecture: no input": (lambda: convert.from_concatenated(*np.ones((3, 7, 7))), "W_r: expected more than 7 columns"),
    "keras: count": (
        lambda: convert.from_keras([np.ones((5, 21))]),
        "weights: expected kernel, recurrent_kernel .* got 1",
    ),
    "keras: sizes": (
        lambda: convert.from_keras([*kernel_arrays(), np.ones((6, 21)), np.ones((7, 21))]),
        r"backward kernel: expected .* \(5, 7\) as the forward layer, got \(6, 7\)",
    ),
    "onnx: hidden_size": (
        lambda: convert.from_onnx(np.ones((1, 21, 5)), np.ones((1, 21, 7)), hidden_size=8),
        r"R: expected shape \(1, 24, 8\), got \(1, 21, 7\)",
    ),
    "linen: missing": (
        lambda: convert.from_flax_linen({"hr": {"kernel": np.ones((7, 7))}}),
        "ir.kernel: expected in the parameters, got hr.kernel",
    ),
}


@pytest.mark.parametrize(("call", "message"), list(REFUSED.values()), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        convert.to_keras,
        convert.to_cell,
        convert.split_layers,
        convert.split_directions,
        convert.from_torchrl,
        convert.from_cell,
        lambda module: convert.stack_layers([module]),
        lambda module: convert.join_directions(module, module),
    ],
)
@pytest.mark.parametrize("module", [nn.Linear(5, 7), nn.LSTM(5, 7), nn.LSTMCell(5, 7)], ids=["linear", "lstm", "cell"])
def test_what_is_no_gru_is_refused(call, module):
    with pytest.raises(TypeError, match=f"expected a GRU.*, got {type(module).__name__}"):
        call(module)


# By library: an array's path, and the name that errors give it.
NAMES = {
    "lecture": {name: name for name in ("W_r", "W_z", "W_h", "b_r", "b_z", "b_h")},
    "keras": {"0": "kernel", "1": "recurrent_kernel", "2": "bias"},
    "keras, reset before": {"0": "kernel", "1": "recurrent_kernel", "2": "bias"},
    "linen": {path: path for path in leaves(linen_params())},
    "nnx": {path: path for path in leaves(nnx_state())},
    "equinox": {path: path for path in equinox_arrays()},
    "haste": {path: path for path in haste_arrays()},
    "onnx": {name: name for name in "WRB"},
}
CONVERTERS["onnx"] = (lambda a: convert.from_onnx(**a), None)
FRESH = {name: FROM[name][0] for name in NAMES if name in FROM} | {
    "onnx": lambda: {"W": numbers(1, 21, 5), "R": numbers(1, 21, 7), "B": numbers(1, 42)}
}


def replaced(arrays, path, value):
    """The arrays with another one at a path."""
    if isinstance(arrays, list):
        return [value if str(i) == path else array for i, array in enumerate(arrays)]
    first, _, rest = path.partition(".")
    return arrays | {first: replaced(arrays[first], rest, value) if rest else value}


@pytest.mark.parametrize(("library", "path"), [(library, path) for library in NAMES for path in NAMES[library]])
def test_a_wrong_array_is_named_with_what_was_expected(library, path):
    read, arrays, name = converters(library)[0], FRESH[library](), NAMES[library][path]
    right = leaves(arrays)[path]
    with pytest.raises(ValueError, match=rf"{name}: expected shape .*, got \({', '.join(['2'] * 4)}\)"):
        read(replaced(arrays, path, np.ones((2, 2, 2, 2))))
    with pytest.raises(ValueError, match=r"expected (shape|more)"):  # of this array, or of one that it is compared with
        read(replaced(arrays, path, np.pad(right, (0, 1))))
    with pytest.raises(
        ValueError, match=r"expected dtype torch.float(64|32) as the other arrays, got torch.float(32|64)"
    ):
        read(replaced(arrays, path, right.astype(np.float32)))
    with pytest.raises(ValueError, match=f"{name}: expected a floating dtype, got int64"):
        read(replaced(arrays, path, right.astype(np.int64)))
    with pytest.raises(ValueError, match=f"{name}: expected a floating dtype, got torch.int64"):
        read(replaced(arrays, path, torch.from_numpy(right).long()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept_both_ways(dtype):
    module = gru(dtype=dtype)
    arrays = convert.to_haste(module)
    assert {array.dtype.name for array in arrays.values()} == {str(dtype).removeprefix("torch.")}
    for given in (arrays, {name: module.weight_ih_l0.new_tensor(array.tolist()) for name, array in arrays.items()}):
        back = convert.from_haste(**given)
        for name, value in module.state_dict().items():
            assert torch.equal(back.state_dict()[name], value)


@pytest.mark.parametrize("as_array", [np.asfortranarray, lambda a: a.astype(">f8"), lambda a: a[::-1][::-1]])
def test_arrays_of_any_layout_are_read(as_array):
    arrays = haste_arrays()
    got = convert.from_haste(**{name: as_array(value) for name, value in arrays.items()})
    for name, value in convert.from_haste(**arrays).state_dict().items():
        assert torch.equal(got.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_nothing_is_shared_and_no_random_number_is_drawn(dtype):
    arrays = {name: torch.from_numpy(value).to(dtype) for name, value in equinox_arrays().items()}
    state = torch.get_rng_state()
    module = convert.from_equinox(**arrays)
    assert torch.equal(torch.get_rng_state(), state)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    for value in (*arrays.values(), *convert.to_equinox(module).values(), *convert.to_torchrl(module).values()):
        value[:] = 0
    for name, value in module.state_dict().items():
        assert torch.equal(value, kept[name])
    assert all(parameter.requires_grad for parameter in module.parameters())


def rooms():
    return [importlib.import_module(m.name) for m in pkgutil.iter_modules(convert.__path__, "trigru.convert.")]


@pytest.mark.parametrize("name", convert.__all__)
def test_each_public_name_has_an_example_that_runs(name):
    public = getattr(convert, name)
    names = {"np": np, "torch": torch, "nn": nn, "trigru": trigru, "ReverseGRU": convert.ReverseGRU}
    found = doctest.DocTestFinder(recurse=False).find(public, name, globs=names)
    if name == "from_keras_layer":
        assert "keras.layers.GRU" in public.__doc__  # needs Keras, so test_convert_keras.py calls it
        return
    assert sum(len(test.examples) for test in found) > 0
    runner = doctest.DocTestRunner()
    assert all(runner.run(test).failed == 0 for test in found)


def test_every_converter_is_public():
    made = {
        name
        for room in rooms()
        for name in vars(room)
        if name.startswith(("from_", "to_", "split_", "join_", "stack_"))
    }
    assert made <= set(convert.__all__)


def test_the_example_of_the_documentation_runs():
    page = Path(__file__).parent.parent / "docs" / "convert.md"
    (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(block, str(page), "exec"), {})


def test_the_documentation_has_every_public_name():
    page = (Path(__file__).parent.parent / "docs" / "convert.md").read_text(encoding="utf-8")
    assert not [name for name in convert.__all__ if name not in page]


def test_importing_needs_none_of_the_libraries():
    code = """
import sys
import trigru
assert "trigru.convert" not in sys.modules
before = set(sys.modules)
import trigru.convert
others = {"keras", "tensorflow", "jax", "flax", "equinox", "torchrl", "onnx", "onnxscript", "ml_dtypes"}
assert not others & (set(sys.modules) - before), others & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
