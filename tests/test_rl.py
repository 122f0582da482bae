"""trigru.rl.GRUModule against TorchRL's own module, and what TorchRL's tests ask of one."""

from __future__ import annotations

import doctest
import warnings

import pytest
import torch

import trigru

torchrl = pytest.importorskip("torchrl.modules", reason="comes with the extra convert")
tensordict = pytest.importorskip("tensordict")
from tensordict import TensorDict  # noqa: E402
from tensordict.nn import TensorDictModule, TensorDictSequential  # noqa: E402
from torchrl.modules import set_recurrent_mode  # noqa: E402

from trigru import rl  # noqa: E402

KEYS = {"in_keys": ["x", "h"], "out_keys": ["y", ("next", "h")]}
OPTIONS = [{}, {"num_layers": 2}, {"num_layers": 3, "bias": False}, {"bidirectional": True}]
OPTIONS += [{"num_layers": 2, "bidirectional": True}]


def pair(**options):
    """TorchRL's module and trigru's with its weights, in float64."""
    theirs = torchrl.GRUModule(3, 5, **KEYS, **options).double()
    ours = rl.GRUModule(gru=trigru.convert.from_torchrl(theirs), **KEYS)
    return theirs, ours


def rollout(module, shape=(4, 9), share=0.3, hidden=True):
    torch.manual_seed(0)
    values = {"x": torch.randn(*shape, 3, dtype=torch.float64), "is_init": torch.rand(*shape, 1) < share}
    if hidden:
        values["h"] = torch.randn(*shape, len(module.gru._all_weights), 5, dtype=torch.float64)
    return TensorDict(values, shape)


def assert_same(got, want):
    for key in ("y", ("next", "h")):
        torch.testing.assert_close(got[key], want[key])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(9,), (4, 9), (2, 3, 9), (4, 1)], ids=str)
@pytest.mark.parametrize("hidden", [True, False])
def test_whole_trajectories(options, shape, hidden):
    theirs, ours = pair(**options)
    given = rollout(theirs, shape, hidden=hidden)
    with set_recurrent_mode(True):
        assert_same(ours(given.clone()), theirs(given.clone()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_derivatives_of_whole_trajectories(options):
    """By the observations, the stored states and all weights, through the outputs and the states that come out."""
    theirs, ours = pair(**options)
    given, grads = rollout(theirs), []
    upstream = torch.randn(4, 9, 3, dtype=torch.float64)
    for module in (theirs, ours):
        leaves = [given["x"].clone().requires_grad_(), given["h"].clone().requires_grad_(), *module.parameters()]
        with set_recurrent_mode(True):
            found = module(TensorDict({"x": leaves[0], "h": leaves[1], "is_init": given["is_init"]}, [4, 9]))
        loss = (found["y"][..., :3] * upstream).sum() + found["next", "h"].square().sum()
        grads.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_single_steps(options, shape):
    theirs, ours = pair(**options)
    given = rollout(theirs, shape, share=0.5)
    assert_same(ours(given.clone()), theirs(given.clone()))
    fresh = rollout(theirs, shape, hidden=False)
    assert_same(ours(fresh.clone()), theirs(fresh.clone()))


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 4)], ids=str)
def test_steps_one_by_one_are_the_trajectory(shape):
    """The state that a step puts at "next" goes into the next one, as an environment does it."""
    _, ours = pair(num_layers=4)
    given = rollout(ours, (*shape, 20), share=0.1, hidden=False)
    with set_recurrent_mode(True):
        want = ours(given.clone())["y"]
    state = {}
    for t in range(20):
        step = TensorDict({"x": given["x"][..., t, :], "is_init": given["is_init"][..., t, :], **state}, shape)
        found = ours(step)
        torch.testing.assert_close(found["y"], want[..., t, :])
        state = {"h": found["next", "h"]}


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_states_that_come_out_are_those_at_the_ends_of_episodes(num_layers):
    _, ours = pair(num_layers=num_layers)
    x, is_init = torch.randn(1, 5, 3, dtype=torch.float64), torch.zeros(1, 5, 1, dtype=torch.bool)
    is_init[0, 3] = True
    with set_recurrent_mode(True):
        found = ours(TensorDict({"x": x, "is_init": is_init}, [1, 5]))["next", "h"][0]
    for end, part in ((2, x[:, :3]), (4, x[:, 3:])):
        torch.testing.assert_close(found[end], ours.gru(part)[1][:, 0])
    assert not found[[0, 1, 3]].any()


def test_a_trigru_gru_in_torchrls_own_module():
    """TorchRL cuts and pads, and gives what is no nn.GRU a mask."""
    for options in OPTIONS:
        theirs, ours = pair(**options)
        given = rollout(theirs)
        with set_recurrent_mode(True):
            want = theirs(given.clone())
            theirs.gru = ours.gru
            assert_same(theirs(given.clone()), want)


def test_dropout_between_layers_is_that_of_the_layer_by_itself():
    _, ours = pair(num_layers=3, dropout=0.5)
    given = rollout(ours)
    given["is_init"][:] = False
    with set_recurrent_mode(True):
        for training in (True, False):
            ours.train(training)
            found = []
            for call in (
                lambda: ours(given.clone())["y"],
                lambda: ours.gru(given["x"], given["h"][:, 0].transpose(0, 1))[0],
            ):
                torch.manual_seed(1)
                found.append(call())
            torch.testing.assert_close(*found)


@pytest.mark.parametrize("norm", [None, "layer"])
def test_options_of_the_layer(norm):
    """Heads, other equations and a clip, against the module by itself; a learned state where an episode begins."""
    options = {"variant": "cho", "clip": 0.4, "num_heads": 2, "zoneout": 0.2, "norm": norm}
    ours = rl.GRUModule(4, 6, 2, learn_initial_state=True, **options, **KEYS).eval()
    torch.nn.init.normal_(ours.gru.h0)
    x, is_init = torch.randn(3, 9, 4), torch.rand(3, 9, 1) < 0.3
    is_init[:, 0] = True
    given = TensorDict({"x": x, "is_init": is_init, "h": torch.randn(3, 9, 2, 6)}, [3, 9])
    with set_recurrent_mode(True):
        got = ours(given.clone())["y"]
    torch.testing.assert_close(got, ours.gru(x, reset=is_init.squeeze(-1))[0])
    step = ours(given[:, 0].clone())
    torch.testing.assert_close(step["y"], got[:, 0])


def test_modes_by_context_and_by_default():
    for default in (None, False, True):
        ours = rl.GRUModule(3, 5, default_recurrent_mode=default, **KEYS)
        assert ours.recurrent_mode is bool(default)
        with set_recurrent_mode("recurrent"):
            assert ours.recurrent_mode
            with set_recurrent_mode("sequential"):
                assert not ours.recurrent_mode
        assert ours.recurrent_mode is bool(default)


def test_tensors_in_place_of_a_tensordict():
    theirs, ours = pair()
    given = rollout(theirs)
    with set_recurrent_mode(True):
        calls = [m(x=given["x"], h=given["h"], is_init=given["is_init"]) for m in (ours, theirs)]
    torch.testing.assert_close(*calls)


def test_state_dicts_go_both_ways():
    theirs, ours = pair(num_layers=2)
    other = rl.GRUModule(3, 5, 2, **KEYS).double()
    other.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(other.state_dict())
    assert theirs.state_dict().keys() == ours.state_dict().keys()


def test_a_policy_in_an_environment():
    """Collected step by step, its trajectories are those of recurrent mode; the primer knows the states' shape."""
    from torchrl.envs import Compose, InitTracker, SerialEnv, StepCounter, TransformedEnv
    from torchrl.testing.mocking_classes import DiscreteActionVecMockEnv

    torch.manual_seed(0)
    ours = rl.GRUModule(7, 5, 2, in_key="observation", out_key="features")
    env = SerialEnv(3, lambda: DiscreteActionVecMockEnv(categorical_action_encoding=True))
    env = TransformedEnv(env, Compose(StepCounter(5), InitTracker(), ours.make_tensordict_primer()))
    head = TensorDictModule(torch.nn.Linear(5, 7), in_keys=["features"], out_keys=["logits"])
    act = TensorDictModule(lambda logits: logits.argmax(-1), in_keys=["logits"], out_keys=["action"])
    policy = TensorDictSequential(ours, head, act)
    with torch.no_grad():
        data = env.rollout(12, policy, break_when_any_done=False)
        assert data["is_init"][:, 1:].any()
        assert data["recurrent_state"].any(-1).any()
        assert data["next", "recurrent_state"].any(-1).all()
        with set_recurrent_mode(True):
            again = ours(data.select("observation", "is_init", "recurrent_state"))
    torch.testing.assert_close(again["features"], data["features"])


def test_vmap_over_weights():
    _, ours = pair()
    given = rollout(ours, (6, 7), hidden=False)
    params = TensorDict.from_module(ours)

    def call(params):
        with set_recurrent_mode(True), params.to_module(ours):
            return ours(given.clone())["y"]

    stacked = torch.stack([params.detach(), params.detach() * 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batching rule that is a loop
        got = torch.vmap(call)(stacked)
    torch.testing.assert_close(got[0], call(params))
    torch.testing.assert_close(got[1], call(params * 2))


def test_one_graph():
    _, ours = pair(num_layers=2)
    given = rollout(ours)

    def call(x, h, is_init):
        return ours._episodes(x, h, is_init)

    arguments = given["x"].transpose(0, 1), given["h"].permute(1, 2, 0, 3), given["is_init"][..., 0].t()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), call(*arguments))


def test_what_does_not_fit_is_refused():
    for error, said, options in (
        (ValueError, "batch_first: expected True", {"batch_first": False, **KEYS}),
        (ValueError, "in_keys", {**KEYS, "in_keys": ["x"]}),
        (ValueError, "out_keys", {**KEYS, "out_keys": ["y"]}),
        (ValueError, "in_keys or in_key", {**KEYS, "in_key": "x"}),
        (TypeError, "gru: expected a trigru.GRU, got GRU", {"gru": torch.nn.GRU(3, 5, batch_first=True), **KEYS}),
    ):
        sizes = () if "gru" in options else (3, 5)
        with pytest.raises(error, match=said):
            rl.GRUModule(*sizes, **options)
    with pytest.raises(ValueError, match="gru: expected alone"):
        rl.GRUModule(3, 5, gru=trigru.GRU(3, 5, batch_first=True), **KEYS)
    with pytest.raises(ValueError, match="batch_first"):
        rl.GRUModule(gru=trigru.GRU(3, 5), **KEYS)
    ours = rl.GRUModule(3, 5, **KEYS)
    with pytest.raises(KeyError, match="is_init"):
        ours(TensorDict({"x": torch.randn(3)}, []))
    with set_recurrent_mode(True), pytest.raises(ValueError, match="a dimension for time"):
        ours(TensorDict({"x": torch.randn(3), "is_init": torch.zeros(1, dtype=torch.bool)}, []))
    for name in ("make_python_based", "make_cudnn_based"):
        with pytest.raises(NotImplementedError, match=name):
            getattr(ours, name)()


def test_the_example_of_the_documentation_runs():
    found = doctest.DocTestFinder(recurse=False).find(
        rl.GRUModule, "GRUModule", globs={"torch": torch, "trigru": trigru}
    )
    assert sum(len(test.examples) for test in found) > 5
    runner = doctest.DocTestRunner()
    assert all(runner.run(test).failed == 0 for test in found)
