"""What PyTorch's own suite asks of nn.GRU and nn.GRUCell, asked of both: layouts, dropout, and errors."""

from __future__ import annotations

import timeit
import warnings

import pytest
import torch
from cases import error
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import trigru


def pair(cell=False, **options):
    classes = (nn.GRUCell, trigru.GRUCell) if cell else (nn.GRU, trigru.GRU)
    theirs, ours = (cls(5, 7, **options) for cls in classes)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_same(got, want):
    for g, w in zip(got, want, strict=True):
        if isinstance(w, PackedSequence):
            assert all(a is b or torch.equal(a, b) for a, b in zip(g[1:], w[1:], strict=True))
            g, w = g.data, w.data
        assert g.dtype == w.dtype
        assert error(g, w) <= 1e-5


def padded(layout):
    x = torch.randn(4, 3, 5)
    return {
        "contiguous": x,
        "transposed": torch.randn(3, 4, 5).transpose(0, 1),
        "expanded": torch.randn(4, 1, 5).expand(4, 3, 5),
        "expanded in time": torch.randn(1, 3, 5).expand(4, 3, 5),
        "sliced": torch.randn(8, 6, 10)[::2, 1:4, ::2],
        "features last in memory first": torch.randn(5, 4, 3).permute(1, 2, 0),
    }[layout]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "layout",
    ["contiguous", "transposed", "expanded", "expanded in time", "sliced", "features last in memory first"],
)
def test_inputs_of_any_layout(layout, batch_first):
    x = padded(layout).requires_grad_()
    hx = torch.randn(7, 3 if not batch_first else 4, 2).permute(2, 1, 0)
    found = []
    for module in pair(bidirectional=True, batch_first=batch_first):
        outputs = module(x, hx)
        found.append([*outputs, *torch.autograd.grad(outputs[0].cos().sum(), [x, *module.parameters()])])
    assert_same(found[1], found[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
def test_an_unbatched_input_is_a_batch_of_one(batch_first, bidirectional, given):
    _, ours = pair(batch_first=batch_first, bidirectional=bidirectional, num_layers=2)
    x, hx = torch.randn(4, 5), torch.randn(2 + 2 * bidirectional, 7) if given else None
    output, h_n = ours(x, hx)
    batch_dim = 0 if batch_first else 1
    want, want_h = ours(x.unsqueeze(batch_dim), None if hx is None else hx.unsqueeze(1))
    assert_same((output, h_n), (want.squeeze(batch_dim), want_h.squeeze(1)))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_empty_batch(bidirectional):
    found = []
    for module in pair(bidirectional=bidirectional, num_layers=2):
        x = torch.zeros(3, 0, 5, requires_grad=True)
        output, h_n = module(x)
        (output.sum() + h_n.sum()).backward()
        found.append([output, h_n, x.grad, *(p.grad for p in module.parameters())])
    assert_same(found[1], found[0])
    assert_same([pair(cell=True)[1](torch.zeros(0, 5))], [torch.zeros(0, 7)])


LENGTHS = {"sorted": (5, 3, 3, 1), "unsorted": (2, 5, 1, 5), "equal": (4, 4), "one": (3,)}


@pytest.mark.parametrize("lengths", list(LENGTHS.values()), ids=LENGTHS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
def test_packed_sequences(lengths, bidirectional, batch_first, given):
    options = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": batch_first}
    x = torch.randn(max(lengths), len(lengths), 5, requires_grad=True)
    hx = torch.randn(2 + 2 * bidirectional, len(lengths), 7, requires_grad=True) if given else None
    leaves = [x, hx] if given else [x]
    found = []
    theirs, ours = pair(**options)
    for module in (theirs, ours):
        enforce_sorted = list(lengths) == sorted(lengths, reverse=True)
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
        output, h_n = module(packed, hx)
        loss = output.data.cos().sum() + h_n.square().sum()
        found.append([output, h_n, *torch.autograd.grad(loss, [*leaves, *module.parameters()])])
    assert_same(found[1], found[0])
    output, told = pad_packed_sequence(found[1][0])
    assert told.tolist() == list(lengths)
    for i, length in enumerate(lengths):  # each sequence as if it were alone
        alone = ours(x[:length, i], None if hx is None else hx[:, i])
        assert_same((output[:length, i], found[1][1][:, i]), alone)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_the_numbers_that_nn_draws_on_a_cpu(packed, bidirectional, batch_first):
    found = []
    for module in pair(num_layers=3, dropout=0.4, bidirectional=bidirectional, batch_first=batch_first):
        torch.manual_seed(11)
        x = torch.randn(4, 3, 5)
        given = pack_padded_sequence(x, torch.tensor([4, 3, 1])) if packed else x
        trained, evaluated = module(given), module.eval()(given)
        found.append([*trained, *evaluated])
        first, second = ((out.data if packed else out) for out in (trained[0], evaluated[0]))
        assert not torch.equal(first, second)
    assert_same(found[1], found[0])


@pytest.mark.parametrize("seq_len", [1, 2, 20])
@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_the_same_numbers_for_slices_and_transposes(batch_first, recording, seq_len):
    """The mask goes by sizes, not by where the input or the state lies in memory."""
    x = torch.randn(16, 2 * seq_len, 3)[:, ::2]
    given = x if batch_first else x.transpose(0, 1)
    hx = torch.randn(3, 8, 16).transpose(1, 2)
    found = []
    for cls in (nn.GRU, trigru.GRU):
        torch.manual_seed(1)
        module = cls(3, 8, num_layers=3, batch_first=batch_first, dropout=0.3)
        torch.manual_seed(2)
        with torch.set_grad_enabled(recording):
            found.append(module(given, hx))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("seq_len", [1, 20])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_results_are_views_of_nothing(options, seq_len):
    for recording in (True, False):
        with torch.set_grad_enabled(recording):
            results = trigru.GRU(5, 7, **options)(torch.randn(seq_len, seq_len, 5))
        for result in results:
            assert not result._is_view()
            result.detach_()


def test_dropout_at_its_ends_and_where_it_cannot_act():
    x = torch.randn(4, 3, 5)
    layer = trigru.GRU(5, 7, num_layers=2, dropout=1.0)
    cut = layer(x)[0]
    assert error(cut, layer(torch.randn(4, 3, 5))[0]) <= 1e-6
    layer.dropout = 0.0
    assert not torch.equal(layer(x)[0], cut)
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        single = trigru.GRU(5, 7, dropout=0.5)
    assert torch.equal(single(x)[0], single.eval()(x)[0])


def test_parameters_may_be_shared_between_modules_and_within_one():
    theirs, ours = pair(num_layers=2, bidirectional=True)
    found = []
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_hh_l0_reverse = module.weight_hh_l0
        parameters = list(module.parameters())
        torch.manual_seed(2)
        output, _ = module(torch.randn(4, 3, 5))
        found.append([output, *torch.autograd.grad(output.cos().sum(), parameters)])
    assert_same(found[1], found[0])


X, HX = torch.zeros(4, 3, 5), torch.zeros(1, 3, 7)
PACKED = pack_sequence([torch.zeros(3, 5), torch.zeros(2, 5)])
WRONG = {
    "dimensions": (X[None], None, "input"),
    "one dimension": (X[0, 0], None, "input"),
    "features": (X[..., :4], None, r"input.size\(-1\)"),
    "no steps": (X[:0], None, "sequence length"),
    "dtype": (X.double(), None, "input"),
    "integers": (X.long(), None, "input"),
    "device": (X.to("meta"), None, "[Ii]nput"),
    "hx dimensions": (X, HX[0], "hx"),
    "hx dimensions, unbatched": (X[:, 0], HX, "hx"),
    "hx batch": (X, HX[:, :2], "hidden size"),
    "hx layers": (X, HX.expand(2, 3, 7), "hidden size"),
    "hx features": (X, HX[..., :6], "hidden size"),
    "hx dtype": (X, HX.double(), "hx|dtype"),
    "hx device": (X, HX.to("meta"), "hidden"),
    "hx of an unbatched input": (X[:, 0], HX[0, :, :6], "hidden size"),
    "packed, hx batch": (PACKED, HX, "hidden size"),
    "packed, features": (PACKED._replace(data=PACKED.data[:, :4]), None, r"input.size\(-1\)"),
    "packed, dtype": (PACKED._replace(data=PACKED.data.double()), None, "input"),
    "packed, dimensions": (PACKED._replace(data=PACKED.data[None]), None, "input"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_call_raises_what_nn_raises(wrong):
    input, hx, named = WRONG[wrong]
    theirs, ours = pair()
    with pytest.raises((RuntimeError, ValueError)) as expected:
        theirs(input, hx)
    with pytest.raises(expected.type, match=named):
        ours(input, hx)


WRONG_CELLS = {
    "dimensions": (X, None, "input"),
    "hidden dimensions": (X[0], HX[None], "hidden"),
    "features": (X[0, :, :4], None, "input_size: got 4 expected 5"),
    "dtype": (X[0].double(), None, "dtype"),
    "hx batch": (X[0], HX[0, :2], "batch size 3 .* batch size 2"),
    "hx features": (X[0], HX[0, :, :6], "hidden_size: got 6, expected 7"),
    "hx dtype": (X[0], HX[0].double(), "dtype"),
    "hx unbatched": (X[0], HX[0, 0], "hx"),
    "hx batched": (X[0, 0], HX[0], "hx"),
}


@pytest.mark.parametrize("variant", ["torch", "cho"])
@pytest.mark.parametrize("wrong", WRONG_CELLS)
def test_a_wrong_call_of_a_cell_raises_what_nn_raises(wrong, variant):
    input, hx, named = WRONG_CELLS[wrong]
    with pytest.raises((RuntimeError, ValueError)) as expected:
        nn.GRUCell(5, 7)(input, hx)
    with pytest.raises(expected.type, match=named):
        trigru.GRUCell(5, 7, variant=variant)(input, hx)


@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=str)
def test_single_steps_are_those_of_a_sequence_and_their_results_apart_in_memory(variant, options):
    layer = trigru.GRU(5, 7, variant=variant, **options)
    x, hx = torch.randn(1, 3, 5), torch.randn(layer.num_layers * (1 + layer.bidirectional), 3, 7)
    found = []
    for schedule in ("auto", "eager"):
        layer.schedule = schedule
        output, h_n = layer(x, hx)
        loss = output.cos().sum() + h_n.square().sum()
        found.append([output, h_n, *torch.autograd.grad(loss, list(layer.parameters()))])
    assert_same(*found)
    with torch.no_grad():
        output, h_n = layer(x, hx)
        before = h_n.clone()
        output.zero_()
    assert torch.equal(h_n, before)


@pytest.mark.slow
def test_the_way_to_a_schedule_costs_no_more_than_half_again_nn():
    theirs, ours = nn.GRU(1, 1), trigru.GRU(1, 1)
    x, hx = torch.ones(1, 1, 1), torch.ones(1, 1, 1)
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            seconds = [min(timeit.repeat(lambda m=m: m(x, hx), number=300, repeat=20)) for m in (theirs, ours)]
        assert seconds[1] <= 1.5 * seconds[0]


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_a_cell_takes_the_steps_of_a_layer(variant):
    layer = trigru.GRU(5, 7, variant=variant)
    cell = trigru.GRUCell(5, 7, variant=variant)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    x, h = torch.randn(4, 3, 5), torch.randn(3, 7)
    want = layer(x, h[None])[0]
    for step, state in zip(x, want, strict=True):
        h = cell(step, h)
        assert error(h, state) <= 1e-5


def test_no_warning_is_given_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = trigru.GRU(5, 7, num_layers=2, dropout=0.1)
        layer(X)[0].sum().backward()
        layer(PACKED)[0].data.sum().backward()
