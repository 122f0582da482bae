"""trigru.convert against Flax, Equinox and TorchRL themselves: `pip install -e ".[test,convert]"`, else skipped."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from cases import error

import trigru
from trigru import convert

TOLERANCE = 1e-5


def module_of(bias=True):
    """A module whose b_hn is zero, as NNX has none."""
    module = trigru.GRU(5, 7, bias=bias, batch_first=True)
    if bias:
        with torch.no_grad():
            module.bias_hh_l0[14:] = 0
    return module


def as_tensor(values):
    return torch.from_numpy(np.array(values))


def trained(jax, loss, params):
    """Some steps of gradient descent."""
    start = loss(params)
    for _ in range(20):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    assert loss(params) < start
    return params


def test_flax_linen():
    jax = pytest.importorskip("jax")
    linen = pytest.importorskip("flax.linen")
    model = linen.RNN(linen.GRUCell(7, bias_init=linen.initializers.normal(0.5)))
    x, y = torch.randn(3, 9, 5), torch.randn(3, 9, 7)
    variables = model.init(jax.random.key(0), x.numpy())
    variables = trained(jax, lambda v: ((model.apply(v, x.numpy()) - y.numpy()) ** 2).mean(), variables)
    module = convert.from_flax_linen(variables["params"]["cell"])
    assert error(module(x)[0], as_tensor(model.apply(variables, x.numpy()))) <= TOLERANCE

    for module in (trigru.GRU(5, 7, batch_first=True), trigru.GRU(5, 7, bias=False, batch_first=True)):
        params = convert.to_flax_linen(module)
        assert jax.tree.structure(params) == jax.tree.structure(dict(variables["params"]["cell"]))
        got = model.apply({"params": {"cell": params}}, x.numpy())
        assert error(as_tensor(got), module(x)[0]) <= TOLERANCE


def test_flax_nnx():
    jax = pytest.importorskip("jax")
    nnx = pytest.importorskip("flax.nnx")
    cell = nnx.GRUCell(5, 7, bias_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(0))
    model = nnx.RNN(cell)
    x, y = torch.randn(3, 9, 5), torch.randn(3, 9, 7)
    graph, state, rest = nnx.split(model, nnx.Param, ...)

    def loss(state):
        got = nnx.merge(graph, state, rest)(x.numpy(), initial_carry=jax.numpy.zeros((3, 7)))
        return ((got - y.numpy()) ** 2).mean()

    nnx.update(model, trained(jax, loss, state))
    module = convert.from_flax_nnx(nnx.state(cell, nnx.Param))
    assert error(module(x)[0], as_tensor(model(x.numpy()))) <= TOLERANCE

    for module in (module_of(), module_of(bias=False)):
        nnx.update(cell, convert.to_flax_nnx(module))
        assert error(as_tensor(model(x.numpy())), module(x)[0]) <= TOLERANCE


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_equinox(bias):
    jax = pytest.importorskip("jax")
    eqx = pytest.importorskip("equinox")
    cell = eqx.nn.GRUCell(5, 7, use_bias=bias, key=jax.random.key(0))
    x, y = torch.randn(9, 5), torch.randn(9, 7)

    def run(cell):
        def step(h, x_t):
            h = cell(x_t, h)
            return h, h

        return jax.lax.scan(step, jax.numpy.zeros(7), x.numpy())[1]

    arrays, rest = eqx.partition(cell, eqx.is_array)
    arrays = trained(jax, lambda a: ((run(eqx.combine(a, rest)) - y.numpy()) ** 2).mean(), arrays)
    cell = eqx.combine(arrays, rest)
    module = convert.from_equinox(cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n)
    assert module.bias == bias
    assert error(module(x)[0], as_tensor(run(cell))) <= TOLERANCE

    module = trigru.GRU(5, 7, bias=bias)
    names = ("weight_ih", "weight_hh", "bias", "bias_n")
    values = convert.to_equinox(module)
    cell = eqx.tree_at(
        lambda c: [getattr(c, n) for n in names], cell, [values[n] for n in names], is_leaf=lambda v: v is None
    )
    assert error(as_tensor(run(cell)), module(x)[0]) <= TOLERANCE


def test_bfloat16_of_jax_is_kept():
    jax = pytest.importorskip("jax")
    eqx = pytest.importorskip("equinox")
    cell = eqx.nn.GRUCell(5, 7, dtype=jax.numpy.bfloat16, key=jax.random.key(0))
    module = convert.from_equinox(cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n)
    assert module.weight_ih_l0.dtype == torch.bfloat16
    back = convert.to_equinox(module)
    for name in ("weight_ih", "weight_hh", "bias", "bias_n"):
        assert (back[name] == np.asarray(getattr(cell, name))).all()


@pytest.mark.parametrize("python_based", [False, True], ids=["nn", "python"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_torchrl(bias, python_based):
    rl = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    keys = {"in_keys": ["x", "h", "is_init"], "out_keys": ["y", ("next", "h")]}
    holder = rl.GRUModule(5, 7, num_layers=2, bias=bias, python_based=python_based, **keys)
    x = torch.randn(3, 9, 5)

    def run():
        nothing = torch.zeros(3, 9, 1, dtype=torch.bool)
        given = tensordict.TensorDict({"x": x, "h": torch.zeros(3, 9, 2, 7), "is_init": nothing}, batch_size=[3, 9])
        with rl.set_recurrent_mode(True):
            return holder(given)["y"]

    optimiser = torch.optim.Adam(holder.parameters(), 0.05)
    for _ in range(3):
        optimiser.zero_grad()
        run().square().mean().backward()
        optimiser.step()

    module = convert.from_torchrl(holder)
    assert (module.num_layers, module.bias, module.batch_first) == (2, bias, True)
    assert error(module(x)[0], run()) <= TOLERANCE

    module = trigru.GRU(5, 7, num_layers=2, bias=bias, batch_first=True)
    holder.load_state_dict(convert.to_torchrl(module))
    assert error(run(), module(x)[0]) <= TOLERANCE
    holder.gru = module
    assert error(run(), module(x)[0]) == 0


def test_a_cell_of_torchrl():
    cell = pytest.importorskip("torchrl.modules").GRUCell(5, 7)
    module = convert.from_torchrl(cell)
    x, h = torch.randn(3, 5), torch.randn(3, 7)
    assert error(module(x[None], h[None])[0][0], cell(x, h)) <= TOLERANCE


SAME, REFUSED = "the same results", "refused by name"


def arguments_of(function):
    return set(inspect.signature(function).parameters) - {"self", "parent"}


# Each argument of flax.linen.GRUCell with a value that is not its default, and what becomes of it.
LINEN = {
    "features": (lambda jax: 9, SAME),
    "gate_fn": (lambda jax: jax.nn.hard_sigmoid, REFUSED),
    "activation_fn": (lambda jax: jax.nn.relu, REFUSED),
    "kernel_init": (lambda jax: jax.nn.initializers.ones, SAME),
    "recurrent_kernel_init": (lambda jax: jax.nn.initializers.he_normal(), SAME),
    "bias_init": (lambda jax: jax.nn.initializers.normal(), SAME),
    "dtype": (lambda jax: jax.numpy.float32, SAME),
    "param_dtype": (lambda jax: jax.numpy.float16, SAME),
    "carry_init": (lambda jax: jax.nn.initializers.zeros, SAME),
    "name": (lambda jax: "other", SAME),
}


@pytest.mark.parametrize("argument", LINEN)
def test_an_argument_of_linen_is_honoured_or_refused(argument):
    jax = pytest.importorskip("jax")
    linen = pytest.importorskip("flax.linen")
    assert arguments_of(linen.GRUCell) == set(LINEN)
    make, verdict = LINEN[argument]
    # The default, orthogonal, is not made in float16.
    start = {"recurrent_kernel_init": jax.nn.initializers.he_normal()} if argument == "param_dtype" else {}
    cell = linen.GRUCell(**{"features": 7, **start, argument: make(jax)})
    model = linen.RNN(cell)
    x = torch.randn(3, 9, 5)
    variables = model.init(jax.random.key(0), x.numpy())
    (params,) = variables["params"].values()
    checked = {"gate_fn": cell.gate_fn, "activation_fn": cell.activation_fn}
    if verdict is REFUSED:
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            convert.from_flax_linen(params, **checked)
        return
    module = convert.from_flax_linen(params, **checked)
    want = as_tensor(model.apply(variables, x.numpy())).float()
    tolerance = 1e-2 if argument == "param_dtype" else TOLERANCE
    assert error(module.float()(x)[0], want) <= tolerance


# Those of flax.nnx.GRUCell.
NNX = {
    "in_features": (lambda jax: 5, SAME),
    "hidden_features": (lambda jax: 9, SAME),
    **{name: LINEN[name] for name in LINEN if name not in ("features", "name")},
    "carry_init": (lambda jax: None, SAME),
    "promote_dtype": (None, SAME),  # to what dtype; see dtype
    "keep_rngs": (lambda jax: False, SAME),
    "rngs": (None, SAME),  # the numbers to begin with
    "kernel_metadata": (lambda jax: {"note": 1}, SAME),
    "recurrent_kernel_metadata": (lambda jax: {"note": 1}, SAME),
    "bias_metadata": (lambda jax: {"note": 1}, SAME),
}


@pytest.mark.parametrize("argument", NNX)
def test_an_argument_of_nnx_is_honoured_or_refused(argument):
    jax = pytest.importorskip("jax")
    nnx = pytest.importorskip("flax.nnx")
    assert arguments_of(nnx.GRUCell.__init__) <= set(NNX)
    make, verdict = NNX[argument]
    if argument not in arguments_of(nnx.GRUCell.__init__):
        pytest.skip("not in this version of Flax")
    options = {"in_features": 5, "hidden_features": 7, "rngs": nnx.Rngs(1)}
    options |= {"recurrent_kernel_init": jax.nn.initializers.he_normal()} if argument == "param_dtype" else {}
    cell = nnx.GRUCell(**{**options, **({argument: make(jax)} if make else {})})
    checked = {"gate_fn": cell.gate_fn, "activation_fn": cell.activation_fn}
    if verdict is REFUSED:
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            convert.from_flax_nnx(nnx.state(cell, nnx.Param), **checked)
        return
    module = convert.from_flax_nnx(nnx.state(cell, nnx.Param), **checked)
    x = torch.randn(3, 9, 5)
    start = jax.numpy.zeros((3, module.hidden_size))
    want = as_tensor(nnx.RNN(cell)(x.numpy(), initial_carry=start)).float()
    tolerance = 1e-2 if argument == "param_dtype" else TOLERANCE
    assert error(module.float()(x)[0], want) <= tolerance


def test_every_argument_of_equinox_is_seen_in_its_arrays():
    """Sizes, dtype and use_bias; the key is for the numbers to begin with. So none can be dropped."""
    eqx = pytest.importorskip("equinox")
    assert arguments_of(eqx.nn.GRUCell.__init__) == {"input_size", "hidden_size", "use_bias", "dtype", "key"}
    assert {field.name for field in dataclasses.fields(eqx.nn.GRUCell)} == {
        *("weight_ih", "weight_hh", "bias", "bias_n"),
        *("input_size", "hidden_size", "use_bias"),
    }


# Those of torchrl.modules.GRUModule. It takes batch_first=True alone.
TORCHRL = {
    "input_size": 6,
    "hidden_size": 9,
    "num_layers": 2,
    "bias": False,
    "batch_first": True,
    "dropout": 0.5,
    "bidirectional": True,
    "python_based": True,
    "recurrent_backend": "auto",
    "recurrent_compute_dtype": torch.bfloat16,
    "recurrent_recompute": "none",
    "recurrent_matmul_precision": "ieee",
    "in_key": None,
    "in_keys": None,
    "out_key": None,
    "out_keys": None,
    "device": "cpu",
    "gru": None,
    "default_recurrent_mode": True,
}


@pytest.mark.parametrize("argument", [name for name in TORCHRL if TORCHRL[name] is not None])
@pytest.mark.filterwarnings("ignore:dropout option")
def test_an_argument_of_torchrl_is_honoured_or_without_effect(argument):
    rl = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    assert arguments_of(rl.GRUModule.__init__) <= set(TORCHRL)
    if argument not in arguments_of(rl.GRUModule.__init__):
        pytest.skip("not in this version of TorchRL")
    keys = {"in_keys": ["x", "h", "is_init"], "out_keys": ["y", ("next", "h")]}
    holder = rl.GRUModule(**{"input_size": 5, "hidden_size": 7, **keys, argument: TORCHRL[argument]}).eval()
    module = convert.from_torchrl(holder).eval()
    assert module.dropout == (0.5 if argument == "dropout" else 0)
    x, states = torch.randn(3, 9, module.input_size), module.num_layers * (1 + module.bidirectional)
    nothing = torch.zeros(3, 9, 1, dtype=torch.bool)
    given = {"x": x, "h": torch.zeros(3, 9, states, module.hidden_size), "is_init": nothing}
    with rl.set_recurrent_mode(True):
        want = holder(tensordict.TensorDict(given, batch_size=[3, 9]))["y"]
    assert error(module(x)[0], want) <= TOLERANCE
