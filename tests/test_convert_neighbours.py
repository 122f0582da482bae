"""trigru.convert: GRUs inside of other models (PyPOTS, LFADS, FlashRNN, DeepFilterNet, GTCRN), their equations as they
are published, in float64."""

import re

import pytest
import torch
from torch import nn

import trigru
from trigru import convert

INPUT, HIDDEN = 6, 8


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64) / 2


def assert_state_is(found, module):
    """A state_dict that came back is that of the module, value by value."""
    want = module.state_dict()
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(found[name], value), name


class Decay(nn.Module):
    """PyPOTS's temporal decay: exp(-relu(W d + b)), W its diagonal alone where features decay by themselves."""

    def __init__(self, inputs, outputs, diag):
        super().__init__()
        self.W, self.b = nn.Parameter(randn(outputs, inputs).abs()), nn.Parameter(randn(outputs))
        self.diag = diag
        if diag:
            self.register_buffer("m", torch.eye(inputs, dtype=torch.float64))

    def forward(self, gaps):
        return torch.exp(-torch.relu(gaps @ (self.W * self.m if self.diag else self.W).T + self.b))


class Pypots(nn.Module):
    """GRU-D as PyPOTS has it; with fed_back=False its cell takes the values and the mask alone, as in the paper."""

    def __init__(self, fed_back=True):
        super().__init__()
        self.fed_back = fed_back
        self.rnn_cell = nn.GRUCell(2 * INPUT + HIDDEN * fed_back, HIDDEN, dtype=torch.float64)
        self.temp_decay_h, self.temp_decay_x = Decay(INPUT, HIDDEN, False), Decay(INPUT, INPUT, True)

    def forward(self, values, mask, gaps, mean, filled):
        h, states = values.new_zeros(len(values), HIDDEN), []
        for x, m, d, last in zip(*(a.unbind(1) for a in (values, mask.double(), gaps, filled)), strict=True):
            h, gamma = h * self.temp_decay_h(d), self.temp_decay_x(d)
            x = m * x + (1 - m) * (gamma * last + (1 - gamma) * mean)
            h = self.rnn_cell(torch.cat([x, h, m] if self.fed_back else [x, m], 1), h)
            states.append(h)
        return torch.stack(states, 1), h


@pytest.mark.parametrize("fed_back", [True, False])
def test_pypots(fed_back):
    theirs = Pypots(fed_back)
    if fed_back:
        with torch.no_grad():
            theirs.rnn_cell.weight_ih[2 * HIDDEN :, INPUT : INPUT + HIDDEN] = 0
    values, mask, mean = randn(3, 9, INPUT), torch.rand(3, 9, INPUT) < 0.5, randn(INPUT)
    ours = convert.from_grud(theirs, mean=mean)
    assert isinstance(ours, trigru.GRUD)
    gaps = ours.time_gaps(torch.rand(3, 9, dtype=torch.float64).cumsum(1), mask)
    filled, last = [], mean.expand(3, INPUT)
    for t in range(9):
        last = torch.where(mask[:, t], values[:, t], last)
        filled.append(last)
    want, want_h = theirs(values, mask, gaps, mean, torch.stack(filled, 1))
    output, h_n = ours(values.masked_fill(~mask, torch.nan), mask, gaps)
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(h_n[0], want_h)


def test_grud_comes_back_from_pypots():
    ours = trigru.GRUD(INPUT, HIDDEN, variant="torch", batch_first=True, dtype=torch.float64, mean=randn(INPUT))
    theirs = Pypots()
    theirs.load_state_dict(convert.to_grud(ours))
    assert_state_is(convert.from_grud(theirs, mean=ours.mean).state_dict(), ours)


class Clipped(nn.GRUCell):
    """LFADS's cell: gates z, r, n, the reset gate before the product, the state clamped."""

    def __init__(self, clip_value):
        super().__init__(INPUT, HIDDEN, dtype=torch.float64)
        self.clip_value = clip_value
        self.bias_hh.requires_grad_(False).zero_()

    def forward(self, x, h):
        z_x, r_x, n_x = (x @ self.weight_ih.T + self.bias_ih).chunk(3, 1)
        z_h, r_h, n_h = self.weight_hh.chunk(3)
        z, r = torch.sigmoid(z_x + h @ z_h.T), torch.sigmoid(r_x + h @ r_h.T)
        return (z * h + (1 - z) * torch.tanh(n_x + (r * h) @ n_h.T)).clamp(-self.clip_value, self.clip_value)


class ClippedGRU(nn.Module):
    def __init__(self, clip_value):
        super().__init__()
        self.cell = Clipped(clip_value)

    def forward(self, x, h):
        states = []
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
            states.append(h)
        return torch.stack(states, 1), h


class BothClipped(nn.Module):
    def __init__(self, clip_value):
        super().__init__()
        self.fwd_gru, self.bwd_gru = ClippedGRU(clip_value), ClippedGRU(clip_value)

    def forward(self, x, h):
        (forth, h_forth), (back, h_back) = self.fwd_gru(x, h[0]), self.bwd_gru(x.flip(1), h[1])
        return torch.cat([forth, back.flip(1)], 2), torch.stack([h_forth, h_back])


@pytest.mark.parametrize("clip_value", [0.2, float("inf")])
@pytest.mark.parametrize("kind", [ClippedGRU, BothClipped, Clipped])
def test_lfads(kind, clip_value):
    theirs = kind(clip_value)
    ours = convert.from_lfads(theirs)
    assert (ours.variant, ours.batch_first, ours.bidirectional) == ("cho", True, kind is BothClipped)
    run = theirs
    if kind is Clipped:
        run = ClippedGRU(clip_value)
        run.cell = theirs
    x, hx = 2 * randn(3, 9, INPUT), randn(1 + ours.bidirectional, 3, HIDDEN)
    want, want_h = run(x, hx if ours.bidirectional else hx[0])
    output, h_n = ours(x, hx)
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(h_n if ours.bidirectional else h_n[0], want_h)
    assert bool((want.abs() == 0.2).any()) == (clip_value == 0.2)
    assert all(p.requires_grad != name.startswith("bias_hh") for name, p in ours.named_parameters())
    back = convert.to_lfads(ours)
    assert_state_is({k.removeprefix("cell.") if kind is Clipped else k: v for k, v in back.items()}, theirs)


def flashrnn(x, R, b, weight, bias=None):
    """The recurrence of FlashRNN's "gru", head by head: states (batch, heads, head_dim)."""
    _, heads, size, _ = R.shape
    inputs = torch.nn.functional.linear(x, weight, bias).unflatten(-1, (3, heads, size))
    h, states = x.new_zeros(len(x), heads, size), []
    for x_r, x_z, x_n in (gates.unbind(1) for gates in inputs.unbind(1)):
        g, r, z = (torch.einsum("hdp,bhp->bhd", R[k], h) + b[k] for k in range(3))
        r, z = torch.sigmoid(x_r + r), torch.sigmoid(x_z + z)
        h = z * h + (1 - z) * torch.tanh(x_n + b[3] + r * g)
        states.append(h.flatten(1))
    return torch.stack(states, 1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_flashrnn(heads):
    size = HIDDEN // heads
    arrays = {"R": randn(3, heads, size, size), "b": randn(4, heads, size), "weight": randn(3 * HIDDEN, INPUT)}
    x, bias = randn(3, 9, INPUT), randn(3 * HIDDEN)
    for more in ({}, {"bias": bias}):
        ours = convert.from_flashrnn(**arrays, **more)
        assert ours.further() == ({"num_heads": heads} if heads > 1 else {})
        torch.testing.assert_close(ours(x)[0], flashrnn(x, **arrays, **more))
    ours = trigru.GRU(INPUT, HIDDEN, batch_first=True, num_heads=heads, dtype=torch.float64)
    back = {name: torch.from_numpy(value) for name, value in convert.to_flashrnn(ours).items()}
    torch.testing.assert_close(flashrnn(x, **back), ours(x)[0])
    torch.testing.assert_close(convert.from_flashrnn(**back)(x), ours(x))


class GroupedLayer(nn.Module):
    """DeepFilterNet's: a nn.GRU for each part of the input; states (groups * directions, batch, hidden / groups)."""

    def __init__(self, input_size, groups, **options):
        super().__init__()
        self.groups = groups
        self.layers = nn.ModuleList(
            nn.GRU(input_size // groups, HIDDEN // groups, batch_first=True, dtype=torch.float64, **options)
            for _ in range(groups)
        )

    def forward(self, x, states):
        parts = zip(self.layers, x.chunk(self.groups, -1), states.chunk(self.groups), strict=True)
        outputs, finals = zip(*(gru(part, state) for gru, part, state in parts), strict=True)
        return torch.cat(outputs, -1), torch.cat(finals)


class Grouped(nn.Module):
    """Several of them, the output of one shuffled on its way to the next."""

    def __init__(self, num_layers, groups, shuffle, add_outputs=False, **options):
        super().__init__()
        width = HIDDEN * (1 + options.get("bidirectional", False))
        self.groups, self.shuffle, self.add_outputs = groups, shuffle and groups > 1, add_outputs
        sizes = [INPUT, *[width] * (num_layers - 1)]
        self.grus = nn.ModuleList(GroupedLayer(size, groups, **options) for size in sizes)

    def forward(self, x, states):
        finals = []
        for index, (layer, state) in enumerate(zip(self.grus, states.chunk(len(self.grus)), strict=True)):
            if index and self.shuffle:
                x = x.unflatten(-1, (-1, self.groups)).transpose(2, 3).flatten(2)
            x, h = layer(x, state)
            finals.append(h)
        return x, torch.cat(finals)


@pytest.mark.parametrize(
    ("num_layers", "groups", "shuffle", "bidirectional", "how"),
    [
        (1, 2, True, False, {"groups": 2}),
        (1, 2, True, True, {"groups": 2}),
        (3, 2, True, False, {"num_heads": 2}),
        (3, 2, False, False, {"groups": 2}),
        (2, 2, True, True, {"num_heads": 2}),
        (2, 2, False, True, {"num_heads": 2}),
        (2, 1, True, True, {}),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_deepfilternet(num_layers, groups, shuffle, bidirectional, how, bias):
    theirs = Grouped(num_layers, groups, shuffle, bias=bias, bidirectional=bidirectional)
    ours = convert.from_deepfilternet(theirs)
    assert ours.further() == how
    x, directions = randn(3, 7, INPUT), 1 + bidirectional
    states = randn(num_layers * groups * directions, 3, HIDDEN // groups)
    hx = states.unflatten(0, (num_layers, groups, directions)).permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)
    want, want_states = theirs(x, states)
    output, h_n = ours(x, hx)
    order = convert.grouped_order(groups, HIDDEN, bidirectional=bidirectional)
    torch.testing.assert_close(output[..., order], want)
    back = h_n.unflatten(0, (num_layers, directions)).unflatten(3, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(0, 2)
    torch.testing.assert_close(back, want_states)
    written = convert.to_deepfilternet(ours, shuffle=theirs.shuffle)
    assert list(written) == list(theirs.state_dict())
    assert all(torch.equal(written[name], x) for name, x in theirs.state_dict().items())
    if num_layers == 1:
        torch.testing.assert_close(convert.from_deepfilternet(theirs.grus[0])(x, hx), (output, h_n))


class Grnn(nn.Module):
    """GTCRN's: two stacks of nn.GRU, the input and the states cut in two."""

    def __init__(self, **options):
        super().__init__()
        sizes = (INPUT // 2, HIDDEN // 2)
        self.rnn1, self.rnn2 = (nn.GRU(*sizes, batch_first=True, dtype=torch.float64, **options) for _ in range(2))

    def forward(self, x, h):
        parts = zip((self.rnn1, self.rnn2), x.chunk(2, -1), h.chunk(2, -1), strict=True)
        return tuple(torch.cat(both, -1) for both in zip(*(gru(a, b.contiguous()) for gru, a, b in parts), strict=True))


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({"bidirectional": True}, {"groups": 2}),
        ({}, {"groups": 2}),
        ({"num_layers": 2}, {"groups": 2}),
        ({"num_layers": 2, "bidirectional": True}, {"num_heads": 2}),
    ],
    ids=["within a frame", "between frames", "two layers", "two layers of both"],
)
def test_gtcrn(options, how):
    theirs = Grnn(**options)
    ours = convert.from_gtcrn(theirs)
    assert ours.further() == how
    x, hx = randn(3, 7, INPUT), randn(len(ours._all_weights), 3, HIDDEN)
    want, want_h = theirs(x, hx)
    output, h_n = ours(x, hx)
    order = convert.grouped_order(2, HIDDEN, bidirectional=ours.bidirectional)
    torch.testing.assert_close(output[..., order], want)
    torch.testing.assert_close(h_n, want_h)
    linear = nn.Linear(len(order), 3, dtype=torch.float64)
    moved = nn.functional.linear(output, linear.weight[:, order.argsort()], linear.bias)
    torch.testing.assert_close(moved, linear(want))
    written = convert.to_gtcrn(ours)
    assert list(written) == list(theirs.state_dict())
    assert all(torch.equal(written[name], x) for name, x in theirs.state_dict().items())


def unlike():
    theirs = Grnn()
    theirs.rnn2 = nn.GRU(INPUT // 2, HIDDEN // 2, bias=False, dtype=torch.float64)
    return theirs


def both_with(first, second):
    theirs = BothClipped(first)
    theirs.bwd_gru.cell.clip_value = second
    return theirs


REFUSED = {
    "grud: the state past the reset gate": (
        lambda: convert.from_grud(Pypots()),
        ValueError,
        "rnn_cell.weight_ih: expected zeros in rows 16 to 24 of columns 6 to 14",
    ),
    "grud: another module": (lambda: convert.from_grud(nn.Linear(2, 3)), TypeError, "expected rnn_cell, temp_decay_h"),
    "grud: the paper's equations": (
        lambda: convert.to_grud(trigru.GRUD(3, 4)),
        ValueError,
        "variant: expected 'torch', which PyPOTS's nn.GRUCell has, got 'chung'",
    ),
    "grud: a clip": (
        lambda: convert.to_grud(trigru.GRUD(3, 4, variant="torch", clip=1.0)),
        ValueError,
        "clip: expected none, as weights do not hold it, got 1.0",
    ),
    "lfads: another module": (lambda: convert.from_lfads(nn.GRUCell(2, 3)), TypeError, "expected a ClippedGRU"),
    "lfads: two clips": (
        lambda: convert.from_lfads(both_with(1.0, 2.0)),
        ValueError,
        "clip_value: expected 1.0 in both directions, got 2.0",
    ),
    "lfads: other equations": (lambda: convert.to_lfads(trigru.GRU(3, 4)), ValueError, "variant: expected 'cho', got"),
    "flashrnn: a matrix that is not square": (
        lambda: convert.from_flashrnn(randn(3, 2, 4, 5), randn(4, 2, 4), randn(24, 5)),
        ValueError,
        "R: expected shape (3, 2, 4, 4), got (3, 2, 4, 5)",
    ),
    "deepfilternet: a sum": (
        lambda: convert.from_deepfilternet(Grouped(2, 2, True, add_outputs=True)),
        ValueError,
        "add_outputs: expected False, got True",
    ),
    "deepfilternet: another module": (
        lambda: convert.from_deepfilternet(nn.GRU(2, 3)),
        TypeError,
        "expected a GroupedGRU or GroupedGRULayer, got GRU",
    ),
    "deepfilternet: groups that see others": (
        lambda: convert.to_deepfilternet(trigru.GRU(4, 8, 2, groups=2)),
        ValueError,
        "weight_ih_l1: expected zeros where one of 2 groups sees another",
    ),
    "deepfilternet: other equations": (
        lambda: convert.to_deepfilternet(trigru.GRU(4, 8, groups=2, variant="cho")),
        ValueError,
        "variant",
    ),
    "gtcrn: no halves": (lambda: convert.to_gtcrn(trigru.GRU(4, 8)), ValueError, "groups: expected 2"),
    "gtcrn: halves of two kinds": (lambda: convert.from_gtcrn(unlike()), ValueError, "groups: expected GRUs alike"),
    "gtcrn: another module": (lambda: convert.from_gtcrn(nn.GRU(2, 3)), TypeError, "its halves rnn1 and rnn2, got GRU"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    call, error, said = REFUSED[case]
    with pytest.raises(error, match=re.escape(said)):
        call()


@pytest.mark.parametrize(
    "option", [{"clip": 1.0}, {"zoneout": 0.5}, {"norm": "layer"}, {"learn_initial_state": True}], ids=str
)
@pytest.mark.parametrize("call", [convert.to_keras, convert.to_cell, convert.split_layers], ids=lambda f: f.__name__)
def test_what_weights_do_not_hold_is_refused(call, option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}: expected none, as weights do not hold it, got {value}"):
        call(trigru.GRU(3, 4, **option))


@pytest.mark.parametrize(
    "call",
    [
        convert.to_keras,
        convert.to_concatenated,
        convert.from_cell,
        lambda cell: convert.to_variant(cell, "chung"),
    ],
)
def test_a_cell_with_equations_that_no_layer_has_is_refused(call):
    with pytest.raises(ValueError, match="variant: expected one of 'torch', 'cho', 'chung', got 'dreamer'"):
        call(trigru.GRUCell(3, 4, variant="dreamer"))


@pytest.mark.parametrize("blocks", [{"num_heads": 4}, {"groups": 2}, {"groups": 2, "num_heads": 4}], ids=str)
def test_heads_and_groups_are_written_as_whole_matrices(blocks):
    module = trigru.GRU(INPUT, HIDDEN, 2, batch_first=True, dtype=torch.float64, recurrent_dropout=0.5, **blocks).eval()
    whole = convert.stack_layers(convert.split_layers(module)).eval()
    assert whole.further() == {"recurrent_dropout": 0.5}
    x = randn(3, 7, INPUT)
    torch.testing.assert_close(whole(x), module(x), rtol=0, atol=0)
