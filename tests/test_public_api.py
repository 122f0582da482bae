"""What `import trigru` offers: its names and their arguments, in order. A change here is a change for users."""

from __future__ import annotations

import inspect

import pytest

import trigru

# Keyword-only arguments after the star.
SIGNATURES = {
    "GRU": "input_size hidden_size num_layers bias batch_first dropout bidirectional device dtype "
    "* variant schedule memory zoneout recurrent_dropout weight_dropout clip num_heads groups norm learn_initial_state "
    "proj_size",
    "GRUCell": "input_size hidden_size bias device dtype * variant norm",
    "GRUD": "input_size hidden_size bias batch_first device dtype * variant schedule memory mean zoneout "
    "recurrent_dropout weight_dropout clip learn_initial_state",
    "gru": "input h0 w_ih w_hh b_ih b_hh * variant schedule reverse batch_sizes memory reset reset_state "
    "lengths mask decay attention zoneout recurrent_dropout weight_dropout clip num_heads groups gain training",
    "batch_invariant": "",
    "explain": "call input args kwargs",
    "plot_gates": "gates path * sequence",
    "tap": "module",
    "swap": "model * variant schedule memory filter_fn",
    "tune": "module input hx * out seconds",
    "unswap": "model",
    "warm": "model batches * device dtype packed jobs given",
}


def test_names():
    assert set(trigru.__all__) == {*SIGNATURES, "KernelTimeout", "VARIANTS", "__version__"}
    assert all(hasattr(trigru, name) for name in (*trigru.__all__, "convert", "onnx"))


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments(name):
    found = []
    for parameter in inspect.signature(getattr(trigru, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        found.append(parameter.name)
    assert " ".join(found) == SIGNATURES[name]
