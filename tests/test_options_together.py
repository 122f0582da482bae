"""Options together: every pair, all in narrow numbers, derivatives of derivatives, torch's checks, one graph."""

import itertools

import pytest
import torch
from given import arguments_of, layer_of, normalised, randn, records_of

import trigru
from trigru import operators
from trigru.operators import compute
from trigru.operators.schema import Recorded, flat

VARIANTS = ("torch", "cho", "chung")

PAIRS = [
    *itertools.combinations(["reset", "lengths", "mask", "decay", "attention", "zoneout", "dropout", "clip", "norm"], 2)
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_pairs_against_the_reference(pair, variant):
    """Values and all gradients, of one layer in both directions, and of two where they take the pair."""
    torch.manual_seed(len(pair[0]))
    stacked = not {"decay", "attention"} & set(pair)
    options = {"zoneout": 0.4 * ("zoneout" in pair), "recurrent_dropout": 0.5 * ("dropout" in pair)}
    options |= {"clip": 0.3} if "clip" in pair else {}
    options |= {"norm": "layer"} if "norm" in pair else {}
    module = trigru.GRU(3, 5, 1 + stacked, bidirectional=True, variant=variant, dtype=torch.float64, **options)
    parts = len(module._all_weights)
    given = {name: v for name, v in arguments_of((6, 3), 10, 2).items() if name in pair}
    if "reset" in pair:
        given["reset_state"] = randn(6, parts, 3, 5).requires_grad_()
    if "lengths" in pair:
        given["lengths"] = torch.tensor([6, 0, 4])
    x, hx = randn(6, 3, 3).requires_grad_(), randn(parts, 3, 5).requires_grad_()
    floating = [v.requires_grad_() for v in given.values() if v.is_floating_point()]
    records = records_of(module, x, hx, **given)
    found, want = operators.gru(*records), compute.by_reference(*records)
    torch.testing.assert_close(found, want)
    upstream = [torch.randn_like(out) for out in want]
    leaves = [x, hx, *module.parameters(), *floating]
    got, wanted = (
        torch.autograd.grad(out, leaves, upstream, retain_graph=True, materialize_grads=True, allow_unused=True)
        for out in (found, want)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_of_them_in_narrow_numbers(variant, dtype):
    torch.manual_seed(0)
    module = trigru.GRU(3, 24, variant=variant, clip=0.8, zoneout=0.2).to(dtype)
    given = {name: v if v.dtype == torch.bool else v.to(dtype) for name, v in arguments_of((20, 3), 24, 1).items()}
    leaves = [v.requires_grad_() for v in given.values() if v.is_floating_point()]
    x = torch.randn(20, 3, 3, dtype=dtype).requires_grad_()
    records = records_of(module, x, None, **given)
    output, _ = operators.gru(*records)
    wide = [None if v is None else v.double() if v.is_floating_point() else v for v in records.call.given]
    call = records.call._replace(
        input=records.call.input.double(), hx=records.call.hx.double(), given=trigru.layer.Given._make(wide)
    )
    want, _ = compute.by_reference(records.layer, [w.double() for w in records.weights], call)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(output.double(), want, rtol=0, atol=tolerance)
    leaves += [x, *module.parameters()]
    grads = [torch.autograd.grad(out.square().mean(), leaves, retain_graph=True) for out in (output.double(), want)]
    for got, wanted in zip(*grads, strict=True):
        scale = wanted.abs().max().clamp(min=1e-3)
        assert ((got - wanted).abs() / scale).max() < 4 * tolerance


def test_derivatives_of_derivatives():
    module = layer_of(2, 2, variant="cho", bidirectional=True, clip=0.7, zoneout=0.3)
    x, hx = randn(3, 2, 2), randn(2, 2, 2)
    given = arguments_of((3, 2), 4, 2)
    given["mask"][1, 0] = False
    given["reset"][2, 1] = True
    leaves = [v.requires_grad_() for v in (x, hx, given["reset_state"], given["decay"], given["attention"])]

    def call(x, hx, state, decay, attention):
        torch.manual_seed(0)
        return module(x, hx, **{**given, "reset_state": state, "decay": decay, "attention": attention})

    torch.autograd.gradcheck(call, leaves)
    torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_derivatives_of_derivatives_where_steps_are_masked(num_layers):
    """By flags alone, which have none."""
    module, x = trigru.GRU(2, 2, num_layers, dtype=torch.float64), randn(3, 2, 2).requires_grad_()
    mask = torch.tensor([[True, True], [False, True], [True, True]])
    torch.autograd.gradgradcheck(lambda x: module(x, mask=mask)[0], x)


def test_the_operator_as_torch_checks_it():
    module = layer_of(2, 3, 2, bidirectional=True, clip=0.7, zoneout=0.3, recurrent_dropout=0.5, norm="layer")
    x = randn(4, 2, 2).requires_grad_()
    given = arguments_of((4, 2), 3, 1)
    states = randn(4, 2, 3).requires_grad_()
    records = records_of(module, x, None, reset=given["reset"], reset_state=states, mask=given["mask"])
    torch.library.opcheck(torch.ops.trigru.gru.default, flat(Recorded(*records, 0)))


def test_one_graph_with_everything():
    module = trigru.GRU(3, 5, bidirectional=True, clip=0.5, learn_initial_state=True, norm="layer")
    given = {name: v.float() if v.dtype == torch.float64 else v for name, v in arguments_of((6, 3), 10, 2).items()}
    lengths, x = torch.tensor([6, 0, 4]), torch.randn(6, 3, 3)

    def call(x):
        return module(x, lengths=lengths, **given)[0]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), call(x))
    parameters = list(module.parameters())
    grads = [torch.autograd.grad(f(x).square().sum(), parameters) for f in (compiled, call)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("options", [{}, {"clip": 0.5}, {"norm": "layer"}], ids=str)
def test_a_graph_has_the_derivatives_of_what_steps_are_given(options):
    """The operator's last arguments have their default values here, and do not come with it."""
    torch.manual_seed(0)
    module, x = trigru.GRU(3, 5, **options), torch.randn(6, 2, 3)
    reset = torch.rand(6, 2) < 0.3
    leaves = [torch.rand(*shape).requires_grad_() for shape in [(1, 2, 5), (6, 2, 5), (6, 2)]]
    every = [*leaves, *module.parameters()]

    def call(state, decay, attention):
        return module(x, reset=reset, reset_state=state, decay=decay, attention=attention)[0]

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(*leaves).square().sum(), every) for f in (compiled, call))
    torch.testing.assert_close(got, want)
    assert all(d.any() for d in got)


def test_checkpointing_draws_the_same_masks():
    module, x = layer_of(3, 5, zoneout=0.5, recurrent_dropout=0.3), randn(6, 2, 3)
    grads = []
    for again in (False, True):
        torch.manual_seed(9)
        output = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)[0] if again else module(x)[0]
        grads.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("name", ["zoneout", "recurrent_dropout"])
def test_masks_keep_nothing_for_backward_but_their_seed(name):
    kept = []
    for rate in (0.0, 0.5):
        module, x, sizes = layer_of(3, 64, 2, **{name: rate}), randn(40, 6, 3).requires_grad_(), {}

        def pack(saved, sizes=sizes):
            sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            module(x)
        kept.append(sum(sizes.values()))
    assert 0 <= kept[1] - kept[0] <= 8


def test_explain_says_what_runs_it():
    module, x = trigru.GRU(3, 4, zoneout=0.1), torch.zeros(50, 2, 3)
    state = torch.get_rng_state()
    found = trigru.explain(module, x, reset=torch.zeros(50, 2, dtype=torch.bool))
    assert found.schedule == "eager"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_function_takes_the_same():
    module, x, hx = layer_of(3, 5, clip=0.4), randn(6, 2, 3), randn(1, 2, 5)
    given = arguments_of((6, 2), 5, 1)
    want, want_h = module(x, hx, lengths=torch.tensor([6, 2]), **given)
    weights = list(module.parameters())
    by_function = {**given, "reset_state": given["reset_state"][:, 0], "lengths": torch.tensor([6, 2]), "clip": 0.4}
    got, h_n = trigru.gru(x, hx[0], *weights, **by_function)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(h_n, want_h[0])
    got, _ = trigru.gru(x.flip(0), hx[0], *weights, reverse=True, reset=given["reset"])
    assert got.shape == want.shape
    module = normalised(3, 5, dtype=torch.float64)
    *weights, gain = module.parameters()
    torch.testing.assert_close(trigru.gru(x, hx[0], *weights, gain=gain)[0], module(x, hx)[0])
    with pytest.raises(RuntimeError, match=r"gain: expected shape \(2, 15\), got \(15,\)"):
        trigru.gru(x, hx[0], *weights, gain=gain[0])
