"""trigru.convert's Keras room, against Keras itself: layers that Keras trained, and layers that take our weights."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "activation: expected tanh, got relu"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation: expected sigmoid, got hard_sigmoid"),
        ({"go_backwards": True}, "go_backwards: expected False"),
    ],
)
def test_a_layer_that_computes_something_else_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trigru.convert.from_keras_layer(layer_of("float32", **options))


def test_directions_that_keras_adds_up_are_refused():
    layer = keras.layers.Bidirectional(keras.layers.GRU(7), merge_mode="sum")
    layer.build((None, None, 5))
    with pytest.raises(ValueError, match="merge_mode: expected 'concat', got 'sum'"):
        trigru.convert.from_keras_layer(layer)
