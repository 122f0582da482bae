"""trigru.convert's Keras room, against Keras itself: layers that Keras trained, and layers that take our weights."""

from __future__ import annotations

import inspect
import os

import numpy as np
import pytest
import torch
from cases import error

import trigru
import trigru.convert

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

# Keras warns of itself, for every array that it converts.
pytestmark = pytest.mark.filterwarnings("ignore")
# With torch behind it, Keras multiplies float64 as float32 too; test_convert.py has its equations in float64.
TOLERANCE = 1e-5
DTYPES = {"float32": torch.float32, "float64": torch.float64}
OPTIONS = {
    "defaults": {},
    "reset before": {"reset_after": False},
    "no bias": {"use_bias": False},
    "reset before, no bias": {"reset_after": False, "use_bias": False},
}


def layer_of(dtype, bidirectional=False, **options):
    layer = keras.layers.GRU(7, return_sequences=True, bias_initializer="random_normal", dtype=dtype, **options)
    layer = keras.layers.Bidirectional(layer, dtype=dtype) if bidirectional else layer
    layer.build((None, None, 5))
    return layer


def run(layer, x):
    return torch.from_numpy(keras.ops.convert_to_numpy(layer(x.numpy())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=OPTIONS)
def test_a_layer_that_keras_trained_gives_the_same_outputs_here(options, bidirectional, dtype):
    layer = layer_of(dtype, bidirectional, **options)
    model = keras.Sequential([keras.Input((6, 5), dtype=dtype), layer, keras.layers.Dense(1, dtype=dtype)])
    before = [array.copy() for array in layer.get_weights()]
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss="mse")
    x, y = torch.randn(16, 6, 5, dtype=DTYPES[dtype]), torch.randn(16, 6, 1, dtype=DTYPES[dtype])
    model.fit(x.numpy(), y.numpy(), epochs=2, batch_size=8, verbose=0)
    assert all((old != new).any() for old, new in zip(before, layer.get_weights(), strict=True))

    module = trigru.convert.from_keras(layer.get_weights(), reset_after=options.get("reset_after", True))
    assert module.variant == ("torch" if options.get("reset_after", True) else "cho")
    assert (module.input_size, module.hidden_size) == (5, 7)
    assert module.bias == options.get("use_bias", True)
    assert module.bidirectional == bidirectional
    assert module.weight_ih_l0.dtype == DTYPES[dtype]
    x = torch.randn(3, 9, 5, dtype=DTYPES[dtype])
    assert error(module(x)[0], run(layer, x)) <= TOLERANCE

    for got, want in zip(trigru.convert.to_keras(module), layer.get_weights(), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_keras_gives_the_outputs_of_a_module_whose_weights_it_takes(variant, bidirectional, bias):
    module = trigru.GRU(5, 7, bias=bias, batch_first=True, bidirectional=bidirectional, variant=variant)
    layer = layer_of("float32", bidirectional, reset_after=variant == "torch", use_bias=bias)
    layer.set_weights(trigru.convert.to_keras(module))
    x = torch.randn(3, 9, 5)
    assert error(run(layer, x), module(x)[0]) <= TOLERANCE
    assert error(trigru.convert.from_keras_layer(layer)(x)[0], module(x)[0]) <= TOLERANCE


def test_a_keras_cell_is_read_as_a_layer():
    cell = keras.layers.GRUCell(7, bias_initializer="random_normal")
    cell.build((None, 5))
    layer = keras.layers.RNN(cell, return_sequences=True)
    x = torch.randn(3, 9, 5)
    assert error(trigru.convert.from_keras_layer(cell)(x)[0], run(layer, x)) <= TOLERANCE


def gru_of(units=7, **options):
    return keras.layers.GRU(units, **{"return_sequences": True, "bias_initializer": "random_normal", **options})


def built(layer):
    layer.build((3, None, 5))
    return layer


SAME, REFUSED = "the same results", "refused by name"
# Each argument of keras.layers.GRU with a value that is not its default, and what becomes of it.
ARGUMENTS = {
    "units": (9, SAME),
    "activation": ("relu", REFUSED),
    "recurrent_activation": ("hard_sigmoid", REFUSED),
    "use_bias": (False, SAME),
    "kernel_initializer": ("he_normal", SAME),
    "recurrent_initializer": ("he_normal", SAME),
    "bias_initializer": ("ones", SAME),
    "kernel_regularizer": ("l2", SAME),
    "recurrent_regularizer": ("l2", SAME),
    "bias_regularizer": ("l2", SAME),
    "activity_regularizer": ("l2", SAME),
    "kernel_constraint": ("non_neg", SAME),
    "recurrent_constraint": ("non_neg", SAME),
    "bias_constraint": ("non_neg", SAME),
    "dropout": (0.5, SAME),
    "recurrent_dropout": (0.5, SAME),
    "seed": (3, SAME),
    "return_sequences": (False, SAME),
    "return_state": (True, SAME),
    "go_backwards": (True, REFUSED),
    "stateful": (True, REFUSED),
    "unroll": (True, SAME),
    "reset_after": (False, SAME),
    "use_cudnn": (False, SAME),
    # Those of the classes above it:
    "implementation": (1, SAME),
    "zero_output_for_mask": (True, SAME),
    "trainable": (False, SAME),
    "dtype": ("float64", SAME),
    "name": ("other", SAME),
}


def test_the_table_has_every_argument_of_keras():
    given = set(inspect.signature(keras.layers.GRU.__init__).parameters) - {"self", "kwargs"}
    given |= set(inspect.signature(keras.layers.RNN.__init__).parameters) - {"self", "cell", "kwargs"}
    assert given <= set(ARGUMENTS), given - set(ARGUMENTS)


def outputs(layer, x):
    """Keras' output over the sequence, or its last, without the states."""
    got = layer(x.numpy())
    return torch.from_numpy(keras.ops.convert_to_numpy(got[0] if isinstance(got, (list, tuple)) else got))


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_argument_is_honoured_or_refused(argument):
    value, verdict = ARGUMENTS[argument]
    layer = built(gru_of(**{argument: value}))
    if verdict is REFUSED:
        with pytest.raises(ValueError, match=f"^{argument}: expected .*, got {value}"):
            trigru.convert.from_keras_layer(layer)
        return
    module = trigru.convert.from_keras_layer(layer)
    x = torch.randn(3, 9, 5, dtype=module.weight_ih_l0.dtype)
    want = module(x)[0] if layer.return_sequences else module(x)[1][0]
    assert error(want, outputs(layer, x)) <= TOLERANCE


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("side", ["forward", "backward"])
def test_an_argument_of_one_direction_is_honoured_or_refused(argument, side):
    value, verdict = ARGUMENTS[argument]
    both = {argument: value} if argument in ("return_sequences", "return_state", "stateful") else {}
    other = {"go_backwards": side == "forward", **both}
    options = {"go_backwards": side == "backward", **both, argument: value}
    if argument == "go_backwards":  # the other way round, which Keras takes
        options, other = {"go_backwards": side == "forward"}, {"go_backwards": side == "backward"}
    forward, backward = (options, other) if side == "forward" else (other, options)
    layer = keras.layers.Bidirectional(gru_of(**forward), backward_layer=gru_of(**backward))
    layer = built(layer)
    if verdict is REFUSED or argument in ("units", "use_bias", "reset_after", "dtype"):
        # Of two that must be alike, errors name the backward one.
        named = side if argument in ("activation", "recurrent_activation") else "(forward|backward)"
        with pytest.raises(ValueError, match=rf"^{named}(_layer\.| kernel: expected ){argument}"):
            trigru.convert.from_keras_layer(layer)
        return
    module = trigru.convert.from_keras_layer(layer)
    x = torch.randn(3, 9, 5)
    output, h_n = module(x)
    want = output if layer.return_sequences else torch.cat([*h_n], -1)
    assert error(want, outputs(layer, x)) <= TOLERANCE


@pytest.mark.parametrize("use_bias", [True, False])
def test_directions_that_differ_in_reset_after_are_refused(use_bias):
    """Without biases the arrays of both have the same shapes."""
    halves = [gru_of(reset_after=i == 0, use_bias=use_bias, go_backwards=i == 1) for i in range(2)]
    layer = built(keras.layers.Bidirectional(halves[0], backward_layer=halves[1]))
    with pytest.raises(ValueError, match=r"backward_layer.reset_after: expected True as the forward layer, got False"):
        trigru.convert.from_keras_layer(layer)


def named(name, function):
    function.__name__ = name
    return function


ACTIVATIONS = {
    "an alias": (lambda: keras.ops.tanh, SAME),
    "torch's own": (lambda: torch.tanh, SAME),
    "a layer": (lambda: keras.layers.Activation("tanh"), SAME),
    "a lambda": (lambda: lambda x: 2 * keras.ops.sigmoid(2 * x) - 1, SAME),
    "a liar": (lambda: named("tanh", lambda x: keras.ops.relu(x)), REFUSED),
    "another": (lambda: keras.activations.softsign, REFUSED),
    "a clipped one": (lambda: named("tanh", lambda x: keras.ops.tanh(keras.ops.clip(x, -4, 4))), REFUSED),
    "none": (lambda: None, REFUSED),
    "one that mixes units": (lambda: named("tanh", lambda x: keras.ops.tanh(x - keras.ops.mean(x))), REFUSED),
    "one that raises": (lambda: named("tanh", lambda x: x.no_such_thing), REFUSED),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations_are_judged_by_what_they_compute(case):
    make, verdict = ACTIVATIONS[case]
    layer = built(gru_of(activation=make()))
    if verdict is REFUSED:
        with pytest.raises(ValueError, match=r"^activation: expected tanh, got"):
            trigru.convert.from_keras_layer(layer)
    else:
        x = torch.randn(3, 9, 5)
        assert error(trigru.convert.from_keras_layer(layer)(x)[0], run(layer, x)) <= TOLERANCE


@pytest.mark.parametrize("name", ["dropout", "recurrent_dropout"])
def test_what_acts_in_training_only_is_left_behind_with_a_warning(name):
    with pytest.warns(UserWarning, match=f"^{name}=0.25 is left behind") as seen:
        trigru.convert.from_keras_layer(built(gru_of(**{name: 0.25})))
    assert [w.filename for w in seen if name in str(w.message)] == [__file__]


def test_directions_that_keras_adds_up_are_refused():
    layer = keras.layers.Bidirectional(keras.layers.GRU(7), merge_mode="sum")
    layer.build((None, None, 5))
    with pytest.raises(ValueError, match="merge_mode: expected 'concat', got 'sum'"):
        trigru.convert.from_keras_layer(layer)


class OwnGRU(keras.layers.GRU):
    def call(self, *args, **kwargs):
        return -super().call(*args, **kwargs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnGRU(7),
        lambda: keras.layers.LSTM(7),
        lambda: keras.layers.RNN(keras.layers.GRUCell(7)),
        lambda: keras.layers.Bidirectional(keras.layers.LSTM(7)),
        lambda: keras.layers.TimeDistributed(keras.layers.Dense(7)),
        lambda: torch.nn.GRU(5, 7),
    ],
)
def test_what_is_no_gru_of_keras_itself_is_refused(make):
    with pytest.raises(TypeError, match=r"^layer: expected keras.layers.GRU.* itself, got .*\.\w+: where it computes"):
        trigru.convert.from_keras_layer(make())


def test_a_layer_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match=r"^layer: expected one that is built"):
        trigru.convert.from_keras_layer(keras.layers.GRU(7))


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_mask_is_keras_own(reset_after):
    """Its first step masked too."""
    theirs = keras.layers.GRU(7, reset_after=reset_after, return_sequences=True, return_state=True)
    x, mask = torch.randn(3, 6, 5), torch.rand(3, 6) < 0.6
    mask[0, 0] = False
    want, want_h = (keras.ops.convert_to_numpy(out) for out in theirs(x.numpy(), mask=mask.numpy()))
    module = trigru.convert.from_keras(theirs.get_weights(), reset_after=reset_after)
    output, h_n = module(x, mask=mask)
    torch.testing.assert_close(output.detach(), torch.from_numpy(want), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(h_n[0].detach(), torch.from_numpy(want_h), rtol=1e-5, atol=1e-6)
