"""PyTorch's own inputs and errors for GRU and GRUCell (its ModuleInfo), given to trigru's modules as well."""

from __future__ import annotations

import functools
from unittest import mock

import pytest
import torch
from cases import error
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import trigru

OURS = {nn.GRU: trigru.GRU, nn.GRUCell: trigru.GRUCell}
SAME = {torch.float32: 1e-5, torch.float64: 1e-12}


@functools.cache
def common_modules():
    """Imported where it is needed, for it takes seconds. The import would freeze the flags in torch.backends, which
    conftest.py sets, for the whole process."""
    with mock.patch.object(torch.backends, "disable_global_flags"):
        from torch.testing._internal import common_modules
    return common_modules


@pytest.fixture(params=OURS, ids=["nn.GRU", "nn.GRUCell"])
def info(request):
    (found,) = (info for info in common_modules().module_db if info.module_cls is request.param)
    return found


def inputs(info, dtype, training):
    kinds = [{}, {"with_packed_sequence": True}] if info.module_cls is nn.GRU else [{}]
    for options in kinds:
        yield from info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=True, training=training, **options
        )


def pair(info, given, dtype, training):
    """nn's module and trigru's with the same weights."""
    args, kwargs = given.constructor_input.args, given.constructor_input.kwargs
    theirs = info.module_cls(*args, **kwargs).to(dtype).train(training)
    ours = OURS[info.module_cls](*args, **kwargs).to(dtype).train(training)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(results):
    results = results if isinstance(results, tuple) and not isinstance(results, PackedSequence) else (results,)
    return [x.data if isinstance(x, PackedSequence) else x for x in results]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", SAME, ids=str)
def test_outputs_and_gradients_are_those_of_nn_for_every_entry(info, dtype, training):
    count = 0
    for given in inputs(info, dtype, training):
        theirs, ours = pair(info, given, dtype, training)
        call = given.forward_input
        leaves = [x.data if isinstance(x, PackedSequence) else x for x in call.args]
        assert not call.kwargs
        assert all(x.requires_grad for x in leaves)
        found = []
        for module in (theirs, ours):
            outputs = tensors(module(*call.args))
            loss = sum((out * torch.arange(1, out.numel() + 1, dtype=dtype).view_as(out)).sum() for out in outputs)
            found.append([*outputs, *torch.autograd.grad(loss, [*leaves, *module.parameters()])])
        for want, got in zip(*found, strict=True):
            assert got.dtype == want.dtype
            assert error(got, want) <= SAME[dtype]
        if given.reference_fn is not None and not isinstance(call.args[0], PackedSequence):
            want = given.reference_fn(ours, *call.args)
            for w, g in zip(tensors(want), tensors(ours(*call.args)), strict=True):
                assert error(g, w) <= SAME[dtype]
        count += 1
    assert count >= (32 if info.module_cls is nn.GRU else 2)


@pytest.mark.parametrize("dtype", SAME, ids=str)
def test_errors_are_those_of_nn(info, dtype):
    count = 0
    for wrong in info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True):
        made, call = wrong.module_error_input.constructor_input, wrong.module_error_input.forward_input
        if wrong.error_on is common_modules().ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(wrong.error_type, match=wrong.error_regex):
                OURS[info.module_cls](*made.args, **made.kwargs)
        else:
            module = OURS[info.module_cls](*made.args, **{"dtype": dtype, **made.kwargs})
            with pytest.raises(wrong.error_type, match=wrong.error_regex):
                module(*call.args, **call.kwargs)
        count += 1
    assert count >= 6
