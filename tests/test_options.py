"""What a call gives each step, against nn.GRU run otherwise, a loop over nn.GRUCell, Keras, and the reference."""

import itertools

import pytest
import torch
from given import arguments_of, layer_of, randn
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import trigru

VARIANTS = ("torch", "cho", "chung")


def by_episodes(module, x, starts, hx, reset_state=None):
    """Each sequence's episodes run one by one; x (T, B, I), outputs and last states as the module's."""
    forth, parts = [], slice(None, None, 2 if module.bidirectional else 1)
    finals = torch.empty_like(hx)
    for b in range(x.shape[1]):
        cuts = [t for t in range(x.shape[0]) if starts[t, b] and t > 0]
        bounds = list(itertools.pairwise([0, *cuts, x.shape[0]]))
        outputs = []
        for first, last in bounds:
            state = torch.zeros_like(hx[:, b : b + 1]) if reset_state is None else reset_state[:, b : b + 1]
            state = state.clone()
            if first == 0 and not starts[0, b]:
                state[parts] = hx[parts, b : b + 1]
            if module.bidirectional and last == x.shape[0]:
                state[1::2] = hx[1::2, b : b + 1]
            output, h_n = module(x[first:last, b : b + 1], state)
            outputs.append(output)
            finals[parts, b] = h_n[parts, 0]
            if module.bidirectional and first == 0:
                finals[1::2, b] = h_n[1::2, 0]
        forth.append(torch.cat(outputs))
    return torch.cat(forth, 1), finals


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize("given", [False, True])
def test_a_reset_is_another_run(variant, num_layers, bidirectional, given):
    module = layer_of(3, 5, num_layers, bidirectional=bidirectional, variant=variant)
    x, starts = randn(11, 4, 3), torch.rand(11, 4) < 0.3
    hx = randn(num_layers * (1 + bidirectional), 4, 5)
    state = randn(*hx.shape) if given else None
    found = module(x, hx, reset=starts, reset_state=state)
    want = by_episodes(module, x, starts, hx, state)
    for got, wanted in zip(found, want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-15)


def test_stacked_resets_of_both_directions_meet_every_layer():
    """A layer above sees what the one below gives of the same episode, and of no other."""
    module = layer_of(3, 5, 3, bidirectional=True)
    x, starts = randn(7, 2, 3), torch.zeros(7, 2, dtype=torch.bool)
    starts[3] = True
    got, h_n = module(x, reset=starts)
    first, before = module(x[:3])
    second, after = module(x[3:])
    torch.testing.assert_close(got, torch.cat([first, second]), rtol=0, atol=1e-15)
    torch.testing.assert_close(h_n[0::2], after[0::2], rtol=0, atol=1e-15)
    torch.testing.assert_close(h_n[1::2], before[1::2], rtol=0, atol=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nan_stays_in_its_episode(variant, bidirectional, norm):
    module = layer_of(3, 4, bidirectional=bidirectional, variant=variant, norm=norm)
    starts = torch.zeros(6, 2, dtype=torch.bool)
    starts[3, 0] = True
    x = randn(6, 2, 3).requires_grad_()
    with torch.no_grad():
        x[1, 0] = torch.nan
        x[2, 0] = torch.inf
    output, _ = module(x, reset=starts)
    assert output[3:].isfinite().all()
    assert output[:, 1].isfinite().all()
    assert output[1, 0].isnan().all()
    (d_x,) = torch.autograd.grad(output.sum(), x)
    assert d_x[3:].isfinite().all()
    assert d_x[:, 1].isfinite().all()
    clean = x.detach().clone()
    clean[:3, 0] = 0
    torch.testing.assert_close(output[3:], module(clean, reset=starts)[0][3:], rtol=0, atol=0)


def test_a_state_by_steps_is_that_of_the_step_that_begins_from_it():
    module = layer_of(3, 4, bidirectional=True)
    x, starts, states = randn(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool), randn(5, 2, 2, 4).requires_grad_()
    starts[2, 0] = True
    output, _ = module(x, reset=starts, reset_state=states)
    alone = torch.stack([states[2, 0, :1], states[1, 1, :1]])
    forth, _ = module(x[2:, :1], torch.stack([alone[0], torch.zeros_like(alone[0])]))
    back, _ = module(x[:2, :1], torch.stack([torch.zeros_like(alone[1]), alone[1]]))
    torch.testing.assert_close(output[2:, :1], forth)
    torch.testing.assert_close(output[:2, :1], back)
    (found,) = torch.autograd.grad(output.sum(), states)
    (want,) = torch.autograd.grad(forth.sum() + back.sum(), states)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(("dtype", "steps"), [(torch.int8, 200), (torch.uint8, 300), (torch.int32, 20)])
def test_lengths_of_few_bits_may_be_compared_with_many_steps(dtype, steps):
    module, x, lengths = layer_of(1, 2), randn(steps, 3, 1), torch.tensor([100, 7, 0]).clamp(max=steps)
    with torch.no_grad():
        want = module(x, lengths=lengths)
        torch.testing.assert_close(module(x, lengths=lengths.to(dtype)), want)


def test_packed_states_are_of_rows_where_there_are_as_many_directions():
    module = layer_of(3, 4, bidirectional=True)
    rows, states = randn(2, 3), randn(2, 2, 4)  # a step each of two sequences; each step's of both directions
    begins = torch.ones(2, dtype=torch.bool)
    packed = [pack_sequence(list(x.split(1))) for x in (rows, begins, states)]
    output, _ = module(packed[0], reset=packed[1], reset_state=packed[2])
    for row, begin, state, got in zip(rows, begins, states, output.data, strict=True):
        want, _ = module(row[None], reset=begin[None], reset_state=state[None])
        torch.testing.assert_close(got[None], want)


def test_lengths_within_vmap():
    module, x, lengths = layer_of(3, 4), randn(2, 7, 3, 3), torch.tensor([[7, 0, 2], [1, 7, 6]])
    found = torch.func.vmap(lambda x, lengths: module(x, lengths=lengths))(x, lengths)
    want = [module(one, lengths=own) for one, own in zip(x, lengths, strict=True)]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*want, strict=True))))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, True)])
def test_lengths_are_a_packed_sequence(batch_first, num_layers, bidirectional):
    """nn.GRU's own, of the lengths that can be packed."""
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
    module = layer_of(3, 5, **options)
    theirs = nn.GRU(3, 5, dtype=torch.float64, **options)
    theirs.load_state_dict(module.state_dict())
    lengths = torch.tensor([4, 7, 1, 2])
    x = randn(4, 7, 3) if batch_first else randn(7, 4, 3)
    hx = randn(num_layers * (1 + bidirectional), 4, 5).requires_grad_()
    padded = (x if batch_first else x.transpose(0, 1)).clone()
    for row, length in zip(padded, lengths, strict=True):
        row[length:] = torch.nan
    padded = (padded if batch_first else padded.transpose(0, 1)).requires_grad_()
    output, h_n = module(padded, hx, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    want, want_h = theirs(packed, hx)
    want, _ = pad_packed_sequence(want, batch_first, total_length=7)
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(h_n, want_h)
    grads, want_grads = (
        torch.autograd.grad((out.square().sum() + h.sum()), [hx, *parameters])
        for out, h, parameters in ((output, h_n, module.parameters()), (want, want_h, theirs.parameters()))
    )
    torch.testing.assert_close(grads, want_grads)


def test_a_sequence_of_no_steps_keeps_its_state():
    module, hx, x = layer_of(3, 5, 2, clip=0.1), randn(2, 3, 5), randn(4, 3, 3)
    lengths = torch.tensor([0, 4, 2], dtype=torch.int32)
    starts = torch.ones(4, 3, dtype=torch.bool)
    starts[0] = False
    output, h_n = module(x, hx, lengths=lengths, reset=starts)
    assert not output[:, 0].any()
    assert torch.equal(h_n[:, 0], hx[:, 0])
    assert not output[2:, 2].any()
    other = module(x[:2, 2:], hx[:, 2:], reset=starts[:2, 2:])
    torch.testing.assert_close(h_n[:, 2:], other[1])


def test_decay_and_attention_in_a_loop_over_a_cell():
    module, cell = layer_of(3, 5), nn.GRUCell(3, 5, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in module.state_dict().items()})
    x, decay, attention = (
        randn(6, 2, 3),
        torch.rand(6, 2, 5, dtype=torch.float64),
        torch.rand(6, 2, dtype=torch.float64),
    )
    leaves = [decay.requires_grad_(), attention.requires_grad_()]
    h, outputs = x.new_zeros(2, 5), []
    for t in range(6):
        begin = decay[t] * h
        h = begin + attention[t, :, None] * (cell(x[t], begin) - begin)
        outputs.append(h)
    want = torch.stack(outputs)
    output, h_n = module(x, decay=decay, attention=attention)
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(h_n[0], h)
    grads = [torch.autograd.grad(out.square().sum(), leaves) for out in (output, want)]
    torch.testing.assert_close(*grads)


def test_zoneout_in_evaluation_is_its_expected_value():
    module, cell = layer_of(3, 5, zoneout=0.3).eval(), nn.GRUCell(3, 5, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in module.state_dict().items()})
    x, h, outputs = randn(6, 2, 3), randn(2, 5), []
    output, _ = module(x, h[None])
    state = torch.get_rng_state()
    for t in range(6):
        h = 0.3 * h + 0.7 * cell(x[t], h)
        outputs.append(h)
    torch.testing.assert_close(output, torch.stack(outputs))
    module(x)
    assert torch.equal(torch.get_rng_state(), state), "no number is drawn in evaluation"


def test_zoneout_carries_units_over_at_its_rate():
    module, x = layer_of(3, 50, 2, zoneout=0.3, bidirectional=True), randn(40, 6, 3)
    torch.manual_seed(3)
    output, _ = module(x)
    states = output.view(40, 6, 2, 50)
    carried = states[1:, :, 0] == states[:-1, :, 0]
    assert 0.27 < carried.double().mean() < 0.33
    assert 0.27 < (states[1:, :, 1] == states[:-1, :, 1]).double().mean() < 0.33
    assert not torch.equal(carried, states[1:, :, 1] == states[:-1, :, 1])
    torch.manual_seed(3)
    assert torch.equal(module(x)[0], output)
    assert not torch.equal(module(x)[0], output)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_zoneout_at_its_ends(rate):
    module, x, hx = layer_of(3, 5, zoneout=rate), randn(6, 2, 3), randn(1, 2, 5)
    plain = layer_of(3, 5)(x, hx)[0]
    for one in (module, module.eval()):
        assert torch.equal(one(x, hx)[0], hx.expand(6, 2, 5) if rate else plain)


@pytest.mark.parametrize("variant", VARIANTS)
def test_recurrent_dropout_has_one_mask_a_call_and_spares_the_blend(variant):
    module, x, hx = layer_of(3, 5, recurrent_dropout=1.0, variant=variant), randn(6, 2, 3), randn(1, 2, 5)
    want = layer_of(3, 5, variant=variant)
    with torch.no_grad():
        want.weight_hh_l0.zero_()
    torch.testing.assert_close(module(x, hx), want(x, hx))
    torch.testing.assert_close(module.eval()(x, hx), layer_of(3, 5, variant=variant)(x, hx))


def test_weight_dropout_is_dropout_of_the_recurrent_weights():
    module, x = layer_of(3, 5, 2, weight_dropout=0.4), randn(6, 2, 3)
    torch.manual_seed(5)
    output, _ = module(x)
    plain = layer_of(3, 5, 2)
    torch.manual_seed(5)
    with torch.no_grad():
        for name in ("weight_hh_l0", "weight_hh_l1"):
            weight = getattr(plain, name)
            weight.copy_(nn.functional.dropout(weight, 0.4))
    torch.testing.assert_close(output, plain(x)[0])


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("name", ["reset", "mask", "lengths", "decay", "attention", "clip and dropout"])
def test_an_empty_batch(name, memory):
    given = {
        "reset": {"reset": torch.ones(4, 0, dtype=torch.bool), "reset_state": torch.ones(2, 0, 5, requires_grad=True)},
        "mask": {"mask": torch.ones(4, 0, dtype=torch.bool)},
        "lengths": {"lengths": torch.zeros(0, dtype=torch.int64)},
        "decay": {"decay": torch.ones(4, 0, 1, requires_grad=True)},
        "attention": {"attention": torch.ones(4, 0, requires_grad=True)},
    }.get(name, {})
    options = {} if given else {"clip": 0.5, "zoneout": 0.5, "recurrent_dropout": 0.5}
    module = trigru.GRU(3, 5, bidirectional=True, memory=memory, **options)
    x = torch.zeros(4, 0, 3, requires_grad=True)
    output, h_n = module(x, **given)
    assert (output.shape, h_n.shape) == ((4, 0, 10), (2, 0, 5))
    leaves = [x, *module.parameters(), *(v for v in given.values() if v.requires_grad)]
    grads = torch.autograd.grad(output.sum() + h_n.sum(), leaves)
    assert all(grad.shape == leaf.shape and not grad.any() for grad, leaf in zip(grads, leaves, strict=True))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("name", "value"), [("zoneout", 0.4), ("recurrent_dropout", 0.4), ("weight_dropout", 0.4), ("clip", 0.05)]
)
def test_rates_and_clip_may_be_changed_later(name, value, compiled):
    """As nn.GRU's dropout: the next call, compiled or not, is of a layer made with it."""
    made, later, x = trigru.GRU(3, 4, **{name: value}), trigru.GRU(3, 4), torch.randn(6, 2, 3)
    later.load_state_dict(made.state_dict())
    torch.compiler.reset()
    call = torch.compile(later, backend="eager", fullgraph=True) if compiled else later

    def result(layer):
        torch.manual_seed(0)
        return layer(x)[0]

    plain, default = result(call), getattr(later, name)
    setattr(later, name, value)
    assert getattr(later, name) == value
    assert repr(later) == repr(made)
    torch.testing.assert_close(result(call), result(made))
    assert not torch.allclose(result(call), plain)
    with pytest.raises(ValueError, match=f"{name}: expected"):
        setattr(later, name, -1)
    setattr(later, name, default)
    assert torch.equal(result(call), plain)
    assert "_options" not in vars(later)


@pytest.mark.parametrize("variant", VARIANTS)
def test_clip_is_the_last_thing_in_a_step(variant):
    module, x, hx = layer_of(3, 5, clip=0.2, variant=variant), randn(6, 2, 3), 10 * randn(1, 2, 5)
    cell = trigru.GRUCell(3, 5, dtype=torch.float64, variant=variant)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in module.state_dict().items()})
    hx.requires_grad_()
    h, outputs = hx[0], []
    for step in x:
        h = cell(step, h).clamp(-0.2, 0.2)
        outputs.append(h)
    want, got = torch.stack(outputs), module(x, hx)[0]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), hx) for out in (got, want)))


def test_a_learned_initial_state_is_where_everything_begins():
    module, x = layer_of(3, 5, 2, learn_initial_state=True, bidirectional=True), randn(6, 2, 3)
    assert not module.h0.any()
    assert set(module.state_dict()) == {*layer_of(3, 5, 2, bidirectional=True).state_dict(), "h0"}
    with torch.no_grad():
        module.h0.normal_()
    whole = module.h0.unsqueeze(1).expand(-1, 2, -1)
    torch.testing.assert_close(module(x), module(x, whole))
    starts = torch.rand(6, 2) < 0.4
    got, want = module(x, reset=starts)[0], module(x, whole, reset=starts, reset_state=module.h0)[0]
    torch.testing.assert_close(got, want)
    (d_h0,) = torch.autograd.grad(got.sum(), module.h0)
    assert d_h0.abs().min() > 0


def test_heads_see_themselves_alone():
    module, x = layer_of(6, 8, num_heads=2, bidirectional=True), randn(5, 3, 6)
    assert module.weight_hh_l0.shape == (24, 4)
    output, h_n = module(x)
    for head in range(2):
        alone = nn.GRU(6, 4, bidirectional=True, dtype=torch.float64)
        with torch.no_grad():
            for name, weight in alone.named_parameters():
                own = getattr(module, name)
                weight.copy_(own.view(3, 2, 4, *own.shape[1:])[:, head].flatten(0, 1))
        want, want_h = alone(x)
        torch.testing.assert_close(output.view(5, 3, 2, 2, 4)[:, :, :, head].flatten(2), want)
        torch.testing.assert_close(h_n.view(2, 3, 2, 4)[:, :, head], want_h)


def test_groups_split_the_input_too():
    module, x = layer_of(6, 8, groups=2), randn(5, 3, 6)
    assert (module.weight_ih_l0.shape, module.weight_hh_l0.shape) == ((24, 3), (24, 4))
    for group in range(2):
        alone = nn.GRU(3, 4, dtype=torch.float64)
        with torch.no_grad():
            for name, weight in alone.named_parameters():
                own = getattr(module, name)
                weight.copy_(own.view(3, 2, 4, *own.shape[1:])[:, group].flatten(0, 1))
        units, features = slice(4 * group, 4 * group + 4), slice(3 * group, 3 * group + 3)
        torch.testing.assert_close(module(x)[0][..., units], alone(x[..., features])[0])


def test_one_head_is_the_ordinary_layer():
    x = torch.randn(9, 3, 6)
    torch.manual_seed(1)
    one = trigru.GRU(6, 8, num_heads=1, groups=1)
    torch.manual_seed(1)
    assert torch.equal(one(x)[0], trigru.GRU(6, 8)(x)[0])
    assert repr(one) == "trigru.GRU(6, 8)"


def test_layouts_agree():
    """Time-major, batch-first and, of one sequence, unbatched."""
    module, x = layer_of(3, 5, bidirectional=True, clip=0.5), randn(7, 4, 3)
    given = arguments_of((7, 4), 10, 2)
    lengths = torch.tensor([7, 3, 0, 5])
    want, want_h = module(x, lengths=lengths, **given)
    first = layer_of(3, 5, bidirectional=True, clip=0.5, batch_first=True)
    swapped = {name: v if name == "reset_state" else v.transpose(0, 1) for name, v in given.items()}
    got, h_n = first(x.transpose(0, 1), lengths=lengths, **swapped)
    torch.testing.assert_close(got.transpose(0, 1), want)
    torch.testing.assert_close(h_n, want_h)
    for b in range(4):
        alone = {name: v[:, :, b] if name == "reset_state" else v[:, b] for name, v in given.items()}
        for one in (module, first):
            got, h_n = one(x[:, b], lengths=lengths[b], **alone)
            torch.testing.assert_close(got, want[:, b])
            torch.testing.assert_close(h_n, want_h[:, b])


@pytest.mark.parametrize("as_data", [False, True])
def test_packed_input_takes_what_its_rows_are_given(as_data):
    module, x = layer_of(3, 5, bidirectional=True, zoneout=0.5), randn(7, 4, 3)
    module.eval()
    lengths = torch.tensor([4, 7, 1, 5])
    given = arguments_of((7, 4), 10, 2)
    del given["mask"]
    hx = randn(2, 4, 5)
    want, want_h = module(x, hx, lengths=lengths, **given)

    def packed(v):
        rows = pack_padded_sequence(v, lengths, enforce_sorted=False)
        return rows.data if as_data else rows

    rows = {name: packed(v.transpose(1, 2) if name == "reset_state" else v) for name, v in given.items()}
    got, h_n = module(pack_padded_sequence(x, lengths, enforce_sorted=False), hx, **rows)
    assert isinstance(got, PackedSequence)
    torch.testing.assert_close(pad_packed_sequence(got, total_length=7)[0], want)
    torch.testing.assert_close(h_n, want_h)


@pytest.mark.parametrize("options", [{"clip": 0.3}, {"zoneout": 0.4}, {"learn_initial_state": True}])
def test_packed_sequences_end_where_they_end(options):
    module, x = layer_of(3, 5, 2, bidirectional=True, **options).eval(), randn(7, 4, 3)
    lengths = torch.tensor([4, 7, 1, 5])
    got, h_n = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    got, _ = pad_packed_sequence(got)
    for b, length in enumerate(lengths):
        want, want_h = module(x[:length, b])
        torch.testing.assert_close(got[:length, b], want)
        torch.testing.assert_close(h_n[:, b], want_h)
