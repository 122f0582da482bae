"""`trigru.gru`: errors at the boundary, and `trigru.explain`."""

from __future__ import annotations

import pytest
import torch
from cases import assert_as_reference, layer
from torch.nn.utils.rnn import pack_sequence

import trigru

NAMES = ("input", "h0", "w_ih", "w_hh", "b_ih", "b_hh")


def arguments(**changed):
    case = layer(3, 2, 5, 7)
    return dict(zip(NAMES, (x.float() for x in case.tensors), strict=True)) | changed


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"variant": "gru"}, ValueError, r"variant: expected one of 'torch', 'cho', 'chung', got 'gru'"),
        ({"schedule": "fast"}, ValueError, r"schedule: expected one of 'auto'.*, got 'fast'"),
        ({"input": torch.zeros(3, 5)}, RuntimeError, r"input: expected 3 dimensions, got 2"),
        ({"input": torch.zeros(0, 2, 5)}, RuntimeError, r"Expected sequence length to be larger than 0 in RNN"),
        ({"input": torch.zeros(3, 2, 4)}, RuntimeError, r"w_ih: expected shape \(21, 4\), got \(21, 5\)"),
        ({"input": torch.zeros(3, 2, 5).double()}, ValueError, r"input: expected the weights' dtype"),
        ({"h0": torch.zeros(3, 7)}, RuntimeError, r"h0: expected shape \(2, 7\), got \(3, 7\)"),
        ({"h0": torch.zeros(2, 7).half()}, RuntimeError, r"h0: expected dtype torch.float32 .*, got torch.float16"),
        ({"h0": torch.zeros(2, 7, device="meta")}, RuntimeError, r"h0: expected device cpu .*, got meta"),
        ({"w_hh": torch.zeros(21, 8)}, RuntimeError, r"w_hh: expected shape \(24, 8\), got \(21, 8\)"),
        ({"b_ih": torch.zeros(20)}, RuntimeError, r"b_ih: expected shape \(21,\), got \(20,\)"),
        ({"b_hh": torch.zeros(21).double()}, RuntimeError, r"b_hh: expected dtype"),
        *(
            ({name: None}, TypeError, f"{name}: expected a torch.Tensor, got NoneType")
            for name in ("input", "w_ih", "w_hh")
        ),
        *(({name: [1.0]}, TypeError, f"{name}: expected a torch.Tensor, got list") for name in NAMES),
        *(({name: torch.ones(2).numpy()}, TypeError, f"{name}: expected a torch.Tensor") for name in NAMES),
        ({"batch_sizes": [2, 1]}, TypeError, "batch_sizes: expected a torch.Tensor, got list"),
        ({"h0": None, "batch_sizes": [2, 1]}, TypeError, "batch_sizes: expected a torch.Tensor, got list"),
        ({"zoneout": None}, TypeError, "zoneout: expected a number, got NoneType"),
        ({"recurrent_dropout": None}, TypeError, "recurrent_dropout: expected a number, got NoneType"),
        ({"weight_dropout": None}, TypeError, "weight_dropout: expected a number, got NoneType"),
    ],
)
def test_what_does_not_fit_is_named(changed, kind, message):
    with pytest.raises(kind, match=message):
        trigru.gru(**arguments(**changed))


@pytest.mark.parametrize("x", [None, [1.0]], ids=str)
def test_explain_names_an_input_that_is_no_tensor(x):
    for call in (trigru.gru, trigru.GRUCell(5, 7)):
        with pytest.raises(TypeError, match=r"input: expected a torch\.Tensor, got"):
            trigru.explain(call, x, torch.zeros(2, 7))


def test_a_schedule_by_name_that_cannot_run_is_an_error():
    with pytest.raises(RuntimeError, match=r"schedule 'stepwise' cannot run here: .*GPU.* on cpu"):
        trigru.gru(**arguments(schedule="stepwise"))
    with pytest.raises(RuntimeError, match=r"schedule 'stepwise' cannot run here: .*torch.float64"):
        trigru.gru(**{k: v.double() for k, v in arguments().items()}, schedule="stepwise")


def test_explain_says_what_runs_and_why():
    x = torch.zeros(20, 2, 5)
    told = trigru.explain(trigru.GRU(5, 7, variant="cho"), x)
    assert (told.schedule, told.device, told.dtype, told.variant) == ("eager", x.device, x.dtype, "cho")
    assert "on cpu" in told.reason
    assert "eager" in str(told)
    assert trigru.explain(trigru.GRU(5, 7), x).schedule == "eager"
    assert trigru.explain(trigru.GRU(5, 7), x[:, 0]).schedule == "eager"
    assert trigru.explain(trigru.GRU(5, 7), pack_sequence([x[:, 0], x[:2, 1]])).schedule == "eager"
    assert trigru.explain(trigru.gru, x.requires_grad_(), torch.zeros(2, 7)).schedule == "eager"
    assert trigru.explain(trigru.GRU(5, 7, schedule="eager"), x).reason == "asked for by name"
    with pytest.raises(RuntimeError, match="cannot run here"):
        trigru.explain(trigru.GRU(5, 7, schedule="stepwise"), x)
    with pytest.raises(TypeError, match=r"call: expected a trigru\.GRU"):
        trigru.explain(torch.nn.GRU(5, 7), x)


def test_explain_names_torch_where_its_own_gru_is_faster():
    x = torch.zeros(20, 2, 5)
    for layer_of_torch, short in (
        (trigru.GRU(5, 7), x[:1]),
        (trigru.GRU(5, 7), x[:8]),
        (trigru.GRU(5, 7, batch_first=True), x),
        (trigru.GRUCell(5, 7), x[0]),
    ):
        assert trigru.explain(layer_of_torch, short).schedule == "torch"
    assert trigru.explain(trigru.GRUCell(5, 7, variant="cho"), x[0]).schedule == "cell"
    with torch.autocast("cpu"):
        assert trigru.explain(trigru.GRUCell(5, 7, variant="cho"), x[0]).schedule == "reference"
    assert trigru.explain(trigru.GRU(5, 7, variant="cho"), x[:1]).schedule == "eager"
    assert trigru.explain(trigru.GRU(5, 7).double(), x[:8].double()).schedule == "eager"
    assert trigru.explain(trigru.gru, x, torch.zeros(2, 7)).schedule == "torch"
    with torch.no_grad():
        assert trigru.explain(trigru.GRU(5, 7), x).schedule == "torch"
        assert trigru.explain(trigru.GRU(5, 64), torch.zeros(128, 1, 5)).schedule == "eager"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seq_len", [1, 5])
def test_what_is_left_to_torch_gives_the_same_results(seq_len, bias, reverse):
    assert_as_reference(layer(seq_len, 2, 5, 7, bias=bias, reverse=reverse))
