"""What a call gives each step and does not fit, and what a layer cannot be made with."""

import re

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import trigru

MISUSE = {
    "reset of floats": (
        {"reset": torch.zeros(5, 2)},
        RuntimeError,
        "reset: expected dtype torch.bool, got torch.float32",
    ),
    "reset of another shape": (
        {"reset": torch.zeros(2, 5, dtype=torch.bool)},
        RuntimeError,
        "reset: expected shape (5, 2), got (2, 5)",
    ),
    "reset that is no tensor": ({"reset": [True]}, TypeError, "reset: expected a torch.Tensor, got list"),
    "reset_state alone": (
        {"reset_state": torch.zeros(1, 2, 4)},
        ValueError,
        "reset_state: expected None without reset",
    ),
    "reset_state of another shape": (
        {"reset": torch.zeros(5, 2, dtype=torch.bool), "reset_state": torch.zeros(3, 4)},
        RuntimeError,
        "reset_state: expected shape (1, 4) or (1, 2, 4) or (5, 1, 2, 4), got (3, 4)",
    ),
    "lengths of floats": ({"lengths": torch.ones(2)}, RuntimeError, "lengths: expected an integer dtype"),
    "lengths for another batch": (
        {"lengths": torch.ones(3, dtype=torch.int64)},
        RuntimeError,
        "lengths: expected shape (2,), got (3,)",
    ),
    "lengths beyond the input": (
        {"lengths": torch.tensor([6, 2])},
        ValueError,
        "lengths: expected numbers from 0 to 5, the steps of input, got 2 to 6",
    ),
    "lengths below 0": ({"lengths": torch.tensor([-1, 2])}, ValueError, "lengths: expected numbers from 0 to 5"),
    "mask of integers": (
        {"mask": torch.ones(5, 2, dtype=torch.int64)},
        RuntimeError,
        "mask: expected dtype torch.bool",
    ),
    "decay of another width": (
        {"decay": torch.ones(5, 2, 3)},
        RuntimeError,
        "decay: expected shape (5, 2, 1) or (5, 2, 4), got (5, 2, 3)",
    ),
    "decay of another dtype": (
        {"decay": torch.ones(5, 2, 1).double()},
        RuntimeError,
        "decay: expected dtype torch.float32",
    ),
    "attention with units": ({"attention": torch.ones(5, 2, 4)}, RuntimeError, "attention: expected shape (5, 2), got"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_what_does_not_fit_is_refused(case):
    given, error, said = MISUSE[case]
    with pytest.raises(error, match=re.escape(said)):
        trigru.GRU(3, 4)(torch.zeros(5, 2, 3), **given)


@pytest.mark.parametrize("name", ["decay", "attention"])
def test_what_several_layers_do_not_take(name):
    with pytest.raises(ValueError, match=f"{name}: expected None with several layers"):
        trigru.GRU(3, 4, 2)(torch.zeros(5, 2, 3), **{name: torch.ones(5, 2)})


@pytest.mark.parametrize("name", ["lengths", "mask"])
def test_what_packed_input_does_not_take(name):
    packed = pack_padded_sequence(torch.zeros(5, 2, 3), [5, 3])
    with pytest.raises(ValueError, match=f"{name}: expected None with packed input"):
        trigru.GRU(3, 4)(packed, **{name: torch.ones(2, dtype=torch.int64)})


@pytest.mark.parametrize("sizes", [[1, 2], [3, 1], [2, 0, 1], [3]], ids=str)
def test_batch_sizes_that_do_not_fit_are_refused_as_without_options(sizes):
    rows, h0, weights = torch.zeros(3, 3), torch.zeros(2, 4), (torch.zeros(12, 3), torch.zeros(12, 4))
    for options in ({}, {"zoneout": 0.5}, {"reset": torch.zeros(3, dtype=torch.bool)}):
        with pytest.raises(RuntimeError, match="as in batch_sizes" if sizes == [3] else "batch_sizes: expected"):
            trigru.gru(rows, h0, *weights, batch_sizes=torch.tensor(sizes), **options)


@pytest.mark.parametrize("name", ["reset", "reset_state", "decay", "attention"])
def test_packed_rows_of_sequences_in_another_order_are_refused(name):
    lengths, layer = torch.tensor([3, 5, 4]), trigru.GRU(3, 4)
    values = {"reset_state": torch.zeros(5, 3, 1, 4), "decay": torch.ones(5, 3, 1), "attention": torch.ones(5, 3)}
    rows = {**values, "reset": torch.rand(5, 3) < 0.3}
    x = pack_padded_sequence(torch.randn(5, 3, 3), lengths, enforce_sorted=False)

    def given(lengths):
        wanted = ("reset", "reset_state") if name == "reset_state" else (name,)
        return {key: pack_padded_sequence(rows[key], lengths, enforce_sorted=False) for key in wanted}

    layer(x, **given(lengths))
    with pytest.raises(RuntimeError, match="expected a PackedSequence of sequences in the input's order"):
        layer(x, **given(torch.tensor([5, 4, 3])))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"zoneout": 1.5}, ValueError),
        ({"zoneout": "0.5"}, TypeError),
        ({"recurrent_dropout": -0.1}, ValueError),
        ({"weight_dropout": float("nan")}, ValueError),
        ({"clip": 0.0}, ValueError),
        ({"clip": -1}, ValueError),
        ({"num_heads": 3}, ValueError),
        ({"num_heads": 0}, ValueError),
        ({"num_heads": 2.0}, TypeError),
        ({"groups": 2}, ValueError),
        ({"norm": "batch"}, ValueError),
        ({"learn_initial_state": 1}, TypeError),
    ],
)
def test_what_a_layer_cannot_be_made_with(given, error):
    with pytest.raises(error, match=next(iter(given))):
        trigru.GRU(3, 4, **given)


WEIGHTS = {"w_ih": torch.zeros(12, 3), "w_hh": torch.zeros(12, 4)}
OF_THE_FUNCTION = {
    "input without dimensions": ({"input": torch.tensor(1.0)}, RuntimeError, "input: expected 3 dimensions, got 0"),
    "w_ih without dimensions": ({"w_ih": torch.tensor(1.0)}, RuntimeError, "w_ih: expected 2 dimensions, got 0"),
    "h0 of another shape": (
        {"h0": torch.zeros(1, 4), "lengths": torch.tensor([5, 2])},
        RuntimeError,
        "h0: expected shape (2, 4), got (1, 4)",
    ),
    "h0 without dimensions": (
        {"h0": torch.tensor(1.0), "clip": 0.5},
        RuntimeError,
        "h0: expected shape (2, 4), got ()",
    ),
    "reset_state of another shape": (
        {"reset": torch.zeros(5, 2, dtype=torch.bool), "reset_state": torch.zeros(1, 4)},
        RuntimeError,
        "reset_state: expected shape (4,) or (2, 4) or (5, 2, 4), got (1, 4)",
    ),
    "groups of no number": ({"groups": None}, TypeError, "groups: expected an int, got NoneType"),
    "groups that do not divide the input": (
        {"groups": 2, "w_hh": torch.zeros(12, 2)},
        ValueError,
        "groups: expected a divisor of input_size 3, got 2",
    ),
}


@pytest.mark.parametrize("case", OF_THE_FUNCTION)
def test_what_does_not_fit_the_function_is_refused_in_its_words(case):
    given, error, said = OF_THE_FUNCTION[case]
    with pytest.raises(error, match=re.escape(said)):
        trigru.gru(**{"input": torch.zeros(5, 2, 3), "h0": None, **WEIGHTS, **given})


def test_a_state_as_long_as_there_are_packed_rows_is_one_for_all():
    rows, state, reset = torch.randn(4, 3), torch.randn(4), torch.tensor([False, False, True, False])
    weights = [torch.randn(12, 3), torch.randn(12, 4)]
    call = {"batch_sizes": torch.tensor([2, 1, 1]), "reset": reset}
    found = trigru.gru(rows, None, *weights, reset_state=state, **call)
    torch.testing.assert_close(found, trigru.gru(rows, None, *weights, reset_state=state.expand(2, 4), **call))
