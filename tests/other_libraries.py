"""GRUs of other libraries as their documentation has them, in NumPy: a step, fresh arrays, and the converters of both
ways."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from trigru import convert

INPUT, HIDDEN = 5, 7
TOLERANCE = 1e-12


def numbers(*shape):
    """Fresh random numbers in float64."""
    return (torch.randn(shape, dtype=torch.float64) / 2).numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lecture(h, x, W_r, W_z, W_h, b_r=0, b_z=0, b_h=0):
    """https://colah.github.io/posts/2015-08-Understanding-LSTMs, with biases."""
    hx = np.concatenate([h, x], -1)
    r, z = sigmoid(hx @ W_r.T + b_r), sigmoid(hx @ W_z.T + b_z)
    n = np.tanh(np.concatenate([r * h, x], -1) @ W_h.T + b_h)
    return (1 - z) * h + z * n


def keras(h, x, kernel, recurrent_kernel, bias=None, *, reset_after):
    """GRUCell.call in https://github.com/keras-team/keras/blob/master/keras/src/layers/rnn/gru.py."""
    bias = np.zeros((2, 3 * HIDDEN)) if bias is None else bias if reset_after else np.stack([bias, 0 * bias])
    x_z, x_r, x_h = np.split(x @ kernel + bias[0], 3, -1)
    k_z, k_r, k_h = np.split(recurrent_kernel, 3, 1)
    b_z, b_r, b_h = np.split(bias[1], 3)
    z, r = sigmoid(x_z + h @ k_z + b_z), sigmoid(x_r + h @ k_r + b_r)
    n = np.tanh(x_h + (r * (h @ k_h + b_h) if reset_after else (r * h) @ k_h))
    return z * h + (1 - z) * n


def flax_linen(h, x, params):
    """https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html#flax.linen.GRUCell"""

    def dense(name, inputs):
        return inputs @ params[name]["kernel"] + params[name].get("bias", 0)

    r = sigmoid(dense("ir", x) + dense("hr", h))
    z = sigmoid(dense("iz", x) + dense("hz", h))
    n = np.tanh(dense("in", x) + r * dense("hn", h))
    return (1 - z) * n + z * h


def flax_nnx(h, x, state):
    """GRUCell.__call__ in https://github.com/google/flax/blob/main/flax/nnx/nn/recurrent.py."""
    xi_r, xi_z, xi_n = np.split(x @ state["dense_i"]["kernel"] + state["dense_i"]["bias"], 3, -1)
    hh_r, hh_z, hh_n = np.split(h @ state["dense_h"]["kernel"], 3, -1)
    r, z = sigmoid(xi_r + hh_r), sigmoid(xi_z + hh_z)
    return (1 - z) * np.tanh(xi_n + r * hh_n) + z * h


def equinox(h, x, weight_ih, weight_hh, bias=None, bias_n=None):
    """GRUCell.__call__ in https://github.com/patrick-kidger/equinox/blob/main/equinox/nn/_rnn.py."""
    i_r, i_z, i_n = np.split(x @ weight_ih.T + (0 if bias is None else bias), 3, -1)
    h_r, h_z, h_n = np.split(h @ weight_hh.T, 3, -1)
    r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    n = np.tanh(i_n + r * (h_n + (0 if bias_n is None else bias_n)))
    return n + z * (h - n)


def haste(h, x, kernel, recurrent_kernel, bias, recurrent_bias):
    """PointwiseOperations in https://github.com/lmnt-com/haste/blob/master/lib/gru_forward_gpu.cu.cc."""
    x_z, x_r, x_g = np.split(x @ kernel + bias, 3, -1)
    h_z, h_r, h_g = np.split(h @ recurrent_kernel + recurrent_bias, 3, -1)
    z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
    return z * h + (1 - z) * np.tanh(x_g + r * h_g)


def torchrl(h, x, state):
    """GRU._gru_cell in https://github.com/pytorch/rl/blob/main/torchrl/modules/tensordict_module/rnn.py."""
    i_r, i_z, i_n = np.split(x @ state["weight_ih_l0"].T + state.get("bias_ih_l0", 0), 3, -1)
    h_r, h_z, h_n = np.split(h @ state["weight_hh_l0"].T + state.get("bias_hh_l0", 0), 3, -1)
    r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    n = np.tanh(i_n + r * h_n)
    return n + z * (h - n)


def lecture_arrays(*biases):
    matrices = {name: numbers(HIDDEN, HIDDEN + INPUT) for name in ("W_r", "W_z", "W_h")}
    return matrices | {name: numbers(HIDDEN) for name in biases}


def kernel_arrays(*bias_shapes):
    return [numbers(INPUT, 3 * HIDDEN), numbers(HIDDEN, 3 * HIDDEN), *(numbers(*shape) for shape in bias_shapes)]


def linen_params():
    params = {f"i{gate}": {"kernel": numbers(INPUT, HIDDEN), "bias": numbers(HIDDEN)} for gate in "rzn"}
    params |= {f"h{gate}": {"kernel": numbers(HIDDEN, HIDDEN)} for gate in "rzn"}
    params["hn"]["bias"] = numbers(HIDDEN)
    return params


def nnx_state():
    kernel, recurrent, bias = kernel_arrays((3 * HIDDEN,))
    return {"dense_i": {"kernel": kernel, "bias": bias}, "dense_h": {"kernel": recurrent}}


def equinox_arrays(bias=True):
    arrays = {"weight_ih": numbers(3 * HIDDEN, INPUT), "weight_hh": numbers(3 * HIDDEN, HIDDEN)}
    return arrays | ({"bias": numbers(3 * HIDDEN), "bias_n": numbers(HIDDEN)} if bias else {})


def haste_arrays():
    names = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
    return dict(zip(names, kernel_arrays((3 * HIDDEN,), (3 * HIDDEN,)), strict=True))


def torchrl_module(state):
    holder = nn.Module()
    holder.gru = nn.GRU(INPUT, HIDDEN, bias="bias_ih_l0" in state, dtype=torch.float64)
    holder.gru.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return holder


def torchrl_state():
    return {name: numbers(*value.shape) for name, value in nn.GRU(INPUT, HIDDEN).state_dict().items()}


# By library: fresh arrays, the step as documented, and the two converters.
FROM = {
    "lecture": (lambda: lecture_arrays("b_r", "b_z", "b_h"), lambda h, x, a: lecture(h, x, **a), "chung"),
    "lecture, one bias": (lambda: lecture_arrays("b_z"), lambda h, x, a: lecture(h, x, **a), "chung"),
    "lecture, no bias": (lecture_arrays, lambda h, x, a: lecture(h, x, **a), "chung"),
    "keras": (lambda: kernel_arrays((2, 21)), lambda h, x, a: keras(h, x, *a, reset_after=True), "torch"),
    "keras, reset before": (lambda: kernel_arrays((21,)), lambda h, x, a: keras(h, x, *a, reset_after=False), "cho"),
    "linen": (linen_params, flax_linen, "torch"),
    "nnx": (nnx_state, flax_nnx, "torch"),
    "equinox": (equinox_arrays, lambda h, x, a: equinox(h, x, **a), "torch"),
    "equinox, no bias": (lambda: equinox_arrays(False), lambda h, x, a: equinox(h, x, **a), "torch"),
    "haste": (haste_arrays, lambda h, x, a: haste(h, x, **a), "torch"),
    "torchrl": (torchrl_state, torchrl, "torch"),
}
CONVERTERS = {
    "lecture": (lambda a: convert.from_concatenated(**a), convert.to_concatenated),
    "keras": (lambda a: convert.from_keras(a, batch_first=False), convert.to_keras),
    "keras, reset before": (
        lambda a: convert.from_keras(a, reset_after=False, batch_first=False),
        convert.to_keras,
    ),
    "linen": (lambda a: convert.from_flax_linen(a, batch_first=False), convert.to_flax_linen),
    "nnx": (lambda a: convert.from_flax_nnx(a, batch_first=False), convert.to_flax_nnx),
    "equinox": (lambda a: convert.from_equinox(**a), convert.to_equinox),
    "haste": (lambda a: convert.from_haste(**a), convert.to_haste),
    "torchrl": (
        lambda a: convert.from_torchrl(torchrl_module(a)),
        lambda m: {k.removeprefix("gru."): v.numpy() for k, v in convert.to_torchrl(m).items()},
    ),
}


def converters(library):
    return CONVERTERS[library] if library in CONVERTERS else CONVERTERS[library.split(",")[0]]


def run(step, arrays, x):
    """The library's step over a sequence (time, batch, input_size), from a zero state."""
    h, outputs = np.zeros((x.shape[1], HIDDEN)), []
    for x_t in x.numpy():
        h = step(h, x_t, arrays)
        outputs.append(h)
    return torch.from_numpy(np.stack(outputs))


def leaves(arrays, path=""):
    """Arrays by their path in nested dicts and lists; what is None is not there."""
    items = arrays.items() if isinstance(arrays, dict) else enumerate(arrays)
    found = {}
    for key, value in items:
        if isinstance(value, np.ndarray):
            found[f"{path}{key}"] = value
        elif value is not None:
            found |= leaves(value, f"{path}{key}.")
    return found
