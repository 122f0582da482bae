"""trigru.convert against Flax, Equinox and TorchRL themselves: `pip install -e ".[test,convert]"`, else skipped."""

from __future__ import annotations

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
