"""What holds for every call: `check` asks it of one of property_cases.py. Used by test_properties.py for seconds and by
soak.py for as long as one likes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accuracy import Overflowing, Rounding
from property_cases import (
    CLIP,
    LEAVES_CHANGED,
    RESULTS_CHANGED,
    ZONEOUT,
    Case,
    Data,
    data_of,
    further_of,
    leaves_of,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import trigru
from trigru import reference
from trigru.layer import Weights

FACTOR = 16  # over the largest error of so few plain runs
ULPS = 8  # of a result's norm: always allowed, before the factor
NUDGED = 10  # times, of which no more are made than it takes
ROWS_OF = ("reset", "decay", "attention")  # packed as the input
CLOSE = 2.0**-36  # as a share of numbers: so near that a result moves in proportion
DEVICE = "cpu"  # where what is tested runs; soak.py has it otherwise


def _laid(x: Tensor, layout: str) -> Tensor:
    """The same values, otherwise in memory; expanded, the first one everywhere."""
    if layout == "expanded" and x.numel():
        return x.reshape(-1)[:1].expand(x.shape)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), math.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x.clone()


def fresh(case: Case, data: Data, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Leaves in a dtype, or as the call is given them."""
    layout = "contiguous" if case.layout == "expanded" else case.layout
    dtypes = dtypes_of(case) if dtype is None else [dtype] * len(data.leaves)
    leaves = [_laid(x.to(own), layout) for x, own in zip(data.leaves, dtypes, strict=True)]
    return [x.requires_grad_(name not in case.frozen) for x, name in zip(leaves, leaves_of(case), strict=True)]


def dtypes_of(case: Case) -> list[torch.dtype]:
    """Of the leaves that the call is given."""
    wide = torch.float32 if case.autocast else case.dtype
    return [case.dtype if name in ("input", "hx") else wide for name in leaves_of(case)]


def expanded(case: Case, data: Data) -> Data:
    """With layout "expanded", every sequence has the first one's input and state."""
    if case.layout != "expanded" or case.batch == 0:
        return data
    first = [x.clone() for x in data.leaves]
    dim = 0 if case.batch_first else 1
    first[0] = first[0].narrow(dim, 0, 1).expand_as(first[0]).clone()
    if case.has_hx:
        first[1] = first[1][:, :1].expand_as(first[1]).clone()
    return replace(data, leaves=first)


def _given(case: Case, leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    x, hx, weights = leaves[0], None, list(leaves[1:])
    if case.has_hx:
        hx, *weights = weights
    if case.layout == "expanded" and case.batch:  # views: gradients by the leaves are the same sums
        dim = 0 if case.batch_first else 1
        x = x.narrow(dim, 0, 1).expand_as(x)
        hx = None if hx is None else hx[:, :1].expand_as(hx)
    return x, hx, weights


def _further(case: Case, weights: list[Tensor]) -> dict[str, Tensor]:
    """What a layer has beside its weights, taken off the end of the leaves that it stands at."""
    return {name: weights.pop() for name in reversed(further_of(case))}


def _whole(weight: Tensor | None, blocks: int) -> Tensor:
    """With zeros outside the blocks."""
    assert weight is not None
    return torch.cat([torch.block_diag(*gate.chunk(blocks)) for gate in weight.chunk(3)])


Outputs = tuple[Tensor, Tensor]


def by_reference(case: Case, data: Data, leaves: Sequence[Tensor]) -> Outputs:
    """(output, h_n) of the reference; rows alone where packed."""
    x, hx, flat = _given(case, leaves)
    further = _further(case, flat)
    if hx is None:
        hx = further["h0"].unsqueeze(1) if "h0" in further else x.new_zeros(case.parts, 1, case.hidden_size)
        hx = hx.expand(-1, case.batch, -1)
    there = [True, True, *case.biases]
    weights = []
    for _ in range(case.parts):
        w_ih, w_hh, *biases = (flat.pop(0) if one else None for one in there)
        weights.append(Weights(_whole(w_ih, case.groups), _whole(w_hh, case.num_heads), *biases))
    x = x.transpose(0, 1) if case.batch_first else x
    if case.options:
        x, own = _reference_options(case, data, x, further)
    sizes = order = None
    if case.packed and not case.options:
        assert data.lengths is not None
        packed = pack_padded_sequence(x, data.lengths, enforce_sorted=False)
        x, sizes, order, back = packed
        hx = hx[:, order]
    options: dict[str, Any] = {
        "bidirectional": case.bidirectional,
        "reverse": case.reverse,
        "variant": case.variant,
    }
    output, h_n = reference.stack(x, hx, weights, batch_sizes=sizes, options=own if case.options else (), **options)
    if case.packed and case.options:
        assert data.lengths is not None
        return pack_padded_sequence(output, data.lengths, enforce_sorted=False).data, h_n
    if case.packed:
        return output, h_n[:, back]
    if case.has_lengths:
        output = output.masked_fill(~_alive(case, data).unsqueeze(-1), 0)
    return output.transpose(0, 1) if case.batch_first else output, h_n


def _alive(case: Case, data: Data) -> Tensor:
    """(seq_len, batch), the steps of each sequence."""
    assert data.lengths is not None
    return torch.arange(case.seq_len).unsqueeze(1) < data.lengths


def _reference_options(
    case: Case, data: Data, x: Tensor, further: dict[str, Tensor]
) -> tuple[Tensor, list[reference.Options]]:
    """The input as far as it is used, and the options of each layer and direction, time-major."""

    def time_major(given: Tensor | None) -> Tensor | None:
        return given.transpose(0, 1) if case.batch_first and given is not None else given

    reset, mask = time_major(data.reset), time_major(data.mask)
    decay, amount = time_major(further.get("decay")), time_major(further.get("attention"))
    if case.has_lengths:
        alive = _alive(case, data)
        mask = alive if mask is None else alive & mask
        reset = None if reset is None else alive & reset
        decay = None if decay is None else torch.where(alive.unsqueeze(-1), decay, 1)
    if "zoneout" in case.options:
        amount = (1 - ZONEOUT) * (x.new_ones(x.shape[:2]) if amount is None else amount)
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0)
        amount = mask.to(x.dtype) if amount is None else amount * mask
    options = []
    for part in range(case.parts):
        fresh = further["reset_state"][part] if "reset_state" in further else None
        if reset is not None and "h0" in further:
            fresh = further["h0"][part].expand(case.batch, -1)
        direction = part % (1 + case.bidirectional)
        own = None if decay is None else decay[..., direction * case.hidden_size :][..., : case.hidden_size]
        whole = None if amount is None else amount.unsqueeze(-1)
        clip = CLIP if "clip" in case.options else None
        gain = further["gain"][part] if "gain" in further else None
        options.append(reference.Options(reset, fresh, own, whole, None, clip, gain))
    return x, options


def by_call(case: Case, data: Data, leaves: Sequence[Tensor], cls: type[nn.Module] | None = None) -> Outputs:
    """(output, h_n) of what is tested, or with `cls` of torch's module; shapes as `by_reference` gives them.

    Raises:
        AssertionError: shapes or dtypes are not as they must be.
    """
    if cls is None and DEVICE != "cpu":
        return _by_call_on_device(case, data, leaves)
    with torch.autocast("cpu", case.dtype, enabled=case.autocast and cls is None):
        return _by_call(case, data, leaves, cls)


def _by_call_on_device(case: Case, data: Data, leaves: Sequence[Tensor]) -> Outputs:
    """There and back, which autograd goes too."""
    reset, mask, lengths = (x if x is None else x.to(DEVICE) for x in (data.reset, data.mask, data.lengths))
    own = replace(data, reset=reset, mask=mask, lengths=data.lengths if case.packed else lengths)
    output, h_n = _by_call(case, own, [x.to(DEVICE) for x in leaves], None)
    assert (output.device.type, h_n.device.type) == (DEVICE, DEVICE)
    return output.cpu(), h_n.cpu()


def _by_call(case: Case, data: Data, leaves: Sequence[Tensor], cls: type[nn.Module] | None) -> Outputs:
    x, hx, weights = _given(case, leaves)
    if case.kind == "module":
        return _by_module(case, data, x, hx, weights, cls or trigru.GRU)
    if case.kind == "cell":
        only_trigru: dict[str, Any] = {} if cls else {"variant": case.variant}
        cell = (cls or trigru.GRUCell)(case.input_size, case.hidden_size, case.biases[0], dtype=x.dtype, **only_trigru)
        _set(cell, weights)
        alone = case.rows == "unbatched"
        hx = None if hx is None else hx[0, 0] if alone else hx[0]
        state = (cell(x[0, 0], hx)[None] if alone else cell(x[0], hx))[None]
        return state, state
    given: dict[str, Any] = _options(case, data, weights)
    given |= {name: given[name][0] for name in ("reset_state", "gain") if name in given}
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = (weights[2 + sum(case.biases[:i])] if case.biases[i] else None for i in range(2))
    sizes = None
    if case.packed:
        assert data.lengths is not None
        x, sizes, *_ = pack_padded_sequence(x, data.lengths)
        given |= {name: pack_padded_sequence(v, data.lengths).data for name, v in given.items() if name in ROWS_OF}
    given |= {"variant": case.variant, "schedule": case.schedule, "reverse": case.reverse, "memory": case.memory}
    given |= _of_module(case) | {"batch_sizes": sizes, "training": "zoneout" not in case.options}
    output, h_n = trigru.gru(x, None if hx is None else hx[0], w_ih, w_hh, b_ih, b_hh, **given)
    return output, h_n[None]


def _by_torch(case: Case, data: Data, leaves: Sequence[Tensor]) -> Outputs:
    """nn.GRUCell or nn.GRU; a function's as a module, with zeros for one bias where only the other is there, and the
    steps turned around where it runs from the last to the first."""
    if case.kind == "cell":
        return by_call(case, data, leaves, nn.GRUCell)
    if case.kind == "function":
        given = dict(zip(leaves_of(case), leaves, strict=True))
        none = leaves[0].new_zeros(3 * case.hidden_size)
        if case.reverse:
            given["input"] = given["input"].flip(0)
        own = replace(case, kind="module", biases=(any(case.biases),) * 2)
        output, h_n = by_call(own, data, [given.get(name, none) for name in leaves_of(own)], nn.GRU)
        return output.flip(0) if case.reverse else output, h_n
    return by_call(case, data, leaves, nn.GRU)


def _options(case: Case, data: Data, weights: list[Tensor]) -> dict[str, Tensor]:
    """Keywords of a call: those in `weights`, which are taken off its end, and the others."""
    lengths = data.lengths if "lengths" in case.options else None
    given = _further(case, weights) | {"reset": data.reset, "mask": data.mask, "lengths": lengths}
    return {name: x for name, x in given.items() if x is not None}


def _of_module(case: Case) -> dict[str, Any]:
    """The options that are a module's."""
    found: dict[str, Any] = {name: x for name, x in (("clip", CLIP), ("zoneout", ZONEOUT)) if name in case.options}
    return found | ({"num_heads": case.num_heads, "groups": case.groups} if case.num_heads > 1 else {})


def _set(module: nn.Module, weights: list[Tensor]) -> None:
    """Leaves in the place of a module's parameters."""
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    for name, weight in zip(names, weights, strict=True):
        module._parameters[name] = weight  # type: ignore[assignment]  # a leaf, which need not be a Parameter


def _by_module(
    case: Case, data: Data, x: Tensor, hx: Tensor | None, weights: list[Tensor], cls: type[nn.Module]
) -> Outputs:
    options: dict[str, Any] = {
        "bias": case.biases[0],
        "batch_first": case.batch_first,
        "bidirectional": case.bidirectional,
    }
    given = _options(case, data, weights)
    options |= _of_module(case)
    if cls is trigru.GRU:
        options |= {"variant": case.variant, "schedule": case.schedule, "memory": case.memory}
        options |= {"norm": "layer" if "gain" in given else None, "learn_initial_state": "h0" in given}
    module = cls(case.input_size, case.hidden_size, case.num_layers, dtype=x.dtype, **options)
    module.train("zoneout" not in case.options)
    _set(module, [*weights, *given.pop("gain", ()), *([given.pop("h0")] if "h0" in given else ())])
    if hasattr(module, "_flat_weights"):
        module._flat_weights = list(weights)  # type: ignore[assignment]  # a list, as torch itself has it
    if case.packed:
        assert data.lengths is not None
        pack = partial(
            pack_padded_sequence,
            lengths=data.lengths,
            batch_first=case.batch_first,
            enforce_sorted=case.rows == "packed",
        )
        packed = pack(x)
        output, h_n = module(packed, hx, **{name: pack(v) if name in ROWS_OF else v for name, v in given.items()})
        assert isinstance(output, PackedSequence)
        assert output.batch_sizes is packed.batch_sizes
        assert output.sorted_indices is packed.sorted_indices
        return output.data, h_n
    if case.rows == "unbatched":
        dim = 0 if case.batch_first else 1
        of_batch = {"reset_state": 1, "lengths": 0}
        given = {name: v.squeeze(of_batch.get(name, dim)) for name, v in given.items()}
        output, h_n = module(x.squeeze(dim), None if hx is None else hx.squeeze(1), **given)
        assert (output.dim(), h_n.dim()) == (2, 2)
        return output.unsqueeze(dim), h_n.unsqueeze(1)
    return module(x, hx, **given)


def gradients(case: Case, data: Data, outputs: Outputs, leaves: Sequence[Tensor], **options) -> list[Tensor]:
    """By the leaves that require them."""
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    used = range({"h_n": 1}.get(case.through, 0), {"output": 1}.get(case.through, 2))
    # Torch's own products give other bits for other layouts, which a result changed in place passes on or not.
    layout = "contiguous" if case.order in RESULTS_CHANGED else case.layout
    upstream = [_laid(data.upstream[i].to(outputs[i].dtype), layout) for i in used]
    found = torch.autograd.grad([outputs[i] for i in used], leaves, upstream, allow_unused=True, **options)
    return [torch.zeros_like(leaf) if x is None else x for x, leaf in zip(found, leaves, strict=True)]


def names_of(case: Case) -> list[str]:
    """Of what is compared."""
    seen: dict[str, int] = {}
    names = ["output", "h_n"]
    for name in leaves_of(case):
        seen[name] = seen.get(name, -1) + 1
        if name not in case.frozen:
            names.append(f"d_{name}" + f"[{seen[name]}]" * name.startswith(("w_", "b_")))
    return names


Run = Callable[[Case, Data, Sequence[Tensor]], Outputs]


def _run(run: Run, case: Case, data: Data, dtype: torch.dtype) -> list[Tensor]:
    leaves = fresh(case, data, dtype)
    outputs = run(case, data, leaves)
    return [x.detach() for x in (*outputs, *gradients(case, data, outputs, leaves))]


class Expected:
    """What a case must give, and how near plain operations in its dtype come."""

    def __init__(self, case: Case, data: Data) -> None:
        self.case, self.data, self.overflowed, self.nudged = case, data, False, 0
        self.exact = _run(by_reference, case, data, torch.float64)
        self.plain = [_run(by_reference, case, data, case.dtype)]
        if case.variant == "torch" and not case.options and not (case.reverse and case.packed):
            self.plain.append(_run(_by_torch, case, data, case.dtype))
        self.reachable = self._largest(self.plain)

    def _largest(self, runs: list[list[Tensor]]) -> list[float]:
        errors = [[self._error(a, b) for a, b in zip(run, self.exact, strict=True)] for run in runs]
        return [max(each) for each in zip(*errors, strict=True)]

    def overflow(self) -> None:
        """Take for plain runs too those in which whatever can overflow in some order of its sums does: a result is
        asked to be finite, and near the exact one, where all of these are, and not to be where none is."""
        for otherwise in (math.nan, math.inf, -math.inf, 0.0):
            with Overflowing(otherwise):
                self.plain.append(_run(by_reference, self.case, self.data, self.case.dtype))

    def nudge(self, seed: int) -> None:
        """Take for reachable too what plain operations give for arguments and gates that differ in their last digits:
        where a result hangs on these, the plain run may have been lucky. And how far the exact one moves with them, by
        its slope: a derivative may have a peak narrower than the dtype's digits, off which all such runs are."""
        torch.manual_seed(seed)
        near = self._nudged(2 * torch.finfo(self.case.dtype).eps, self.case.dtype)
        # In 16 bits a gate that is less by one unit would excuse everything.
        with Rounding(ulps=float(self.case.dtype in (torch.float32, torch.float64))):
            runs = [_run(by_reference, self.case, near, self.case.dtype)]
        with Rounding(ulps=1):  # of a saturated gate even float64 has no digits left
            runs.append(_run(by_reference, self.case, self.data, torch.float64))
        moved = self._largest([_run(by_reference, self.case, self._nudged(CLOSE, torch.float64), torch.float64)])
        slopes = [2 * torch.finfo(self.case.dtype).eps / CLOSE * error for error in moved]
        self.reachable = [max(each) for each in zip(self.reachable, self._largest(runs), slopes, strict=True)]

    def _nudged(self, share: float, dtype: torch.dtype) -> Data:
        """Other leaves, by up to that share of them: biases that cancel no longer do."""
        leaves = [(x * (1 + share * (2 * torch.rand_like(x) - 1))).to(dtype).double() for x in self.data.leaves]
        return expanded(self.case, replace(self.data, leaves=leaves))

    @staticmethod
    def _error(got: Tensor, want: Tensor) -> float:
        """||got - want|| of the elements that are finite in both, or in the other's dtype."""
        difference = got.double() - want
        return difference[difference.isfinite()].norm().item()

    def wrong(self, got: Sequence[Tensor]) -> list[str]:
        """What is not as it must be, in words."""
        said = self._wrong(got)
        if said and not self.overflowed:
            self.overflow()
            self.overflowed = True
            said = self._wrong(got)
        while said and self.nudged < NUDGED:
            self.nudge(self.nudged)
            self.nudged += 1
            said = self._wrong(got)
        return said

    def _wrong(self, got: Sequence[Tensor]) -> list[str]:
        info = torch.finfo(self.case.dtype)
        said = []
        required = zip(leaves_of(self.case), dtypes_of(self.case), strict=True)
        dtypes = [self.case.dtype] * 2 + [dtype for name, dtype in required if name not in self.case.frozen]
        columns = zip(names_of(self.case), got, dtypes, self.exact, self.reachable, *self.plain, strict=True)
        for name, x, dtype, exact, reachable, *plain in columns:
            if x.shape != exact.shape or x.dtype != dtype:
                said.append(f"{name}: {tuple(x.shape)} {x.dtype}, expected {tuple(exact.shape)} {dtype}")
                continue
            finite = exact.abs() < 0.5 * info.max  # beyond, the order of a sum says whether it overflows
            for each in plain:
                finite &= each.isfinite()
            size = exact[finite].norm().item()
            least = info.smallest_normal * info.eps * (1 + finite.sum().item()) ** 0.5
            allowed = FACTOR * max(reachable, ULPS * info.eps * size / FACTOR + least)
            finite &= exact.abs() + allowed < info.max
            if not x[finite].isfinite().all():
                said.append(f"{name}: not finite where the reference is")
                continue
            lost, infinite = ~exact.isfinite(), exact.isinf()
            for each in plain:
                lost &= ~each.isfinite()
                infinite &= each == exact
            # The reference takes what is not done for 0 times it.
            if x[lost].isfinite().any() and not self.case.options:
                said.append(f"{name}: finite where the reference is not")
            elif (x[infinite] != exact[infinite]).any() and not self.case.options:
                said.append(f"{name}: not as infinite as the reference")
            found = (x.double() - exact)[finite].norm().item()
            if not found <= allowed:
                said.append(f"{name}: off by {found:.3g} of {size:.3g}, allowed {allowed:.3g}")
        return said


def same(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    """Bit for bit, a NaN like any other."""
    pairs = zip(got, want, strict=True)
    return all(torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def check(case: Case) -> None:
    """Ask every property of a case.

    Raises:
        AssertionError: one does not hold.
    """
    data = expanded(case, data_of(case))
    expected = Expected(case, data)
    leaves = fresh(case, data)
    outputs = by_call(case, data, leaves)
    first = [x.detach().clone() for x in outputs]
    if case.order == "no_grad between":
        with torch.no_grad():
            alone = by_call(case, data, leaves)
    grads = gradients(case, data, outputs, leaves, retain_graph=True)
    wrong = expected.wrong([*first, *grads])
    assert not wrong, "; ".join(wrong)

    if case.order == "no_grad between":
        wrong = expected.wrong([*alone, *grads])
        assert not wrong, f"without gradients: {'; '.join(wrong)}"
    elif case.order == "backward twice":
        assert same(gradients(case, data, outputs, leaves), grads), "a second backward gives other bits"
    elif case.order == "two calls, two backwards":
        again = by_call(case, data, leaves)
        assert same(again, first), "a second call gives other bits"
        assert same(gradients(case, data, outputs, leaves), grads), "a backward after another call gives other bits"
        assert same(gradients(case, data, again, leaves), grads), "the second call's backward gives other bits"
    elif case.order in RESULTS_CHANGED:
        _result_changed(case, data, outputs, leaves)
    elif case.order in LEAVES_CHANGED:
        _leaf_changed(case, data, outputs, leaves, grads)


def _raises_or(found: Callable[[], list[Tensor]], want: list[Tensor], what: str) -> None:
    try:
        got = found()
    except RuntimeError as error:
        assert "inplace operation" in str(error), error  # noqa: PT017
        return
    assert same(got, want), f"{what}: backward gives other gradients, and no error"


def _result_changed(case: Case, data: Data, outputs: Outputs, leaves: list[Tensor]) -> None:
    """In place, as autograd lets results of nn.GRU be changed."""
    which = RESULTS_CHANGED.index(case.order)
    doubled = [2 * x if i == which else x for i, x in enumerate(outputs)]
    if outputs[0] is outputs[1]:  # a cell's
        doubled = [2 * x for x in outputs]
    want = gradients(case, data, (doubled[0], doubled[1]), leaves, retain_graph=True)
    outputs[which].mul_(2)
    _raises_or(lambda: gradients(case, data, outputs, leaves), want, case.order)


def _leaf_changed(case: Case, data: Data, outputs: Outputs, leaves: list[Tensor], grads: list[Tensor]) -> None:
    """In place: an earlier call's backward is refused, or right; a later call sees the new values."""
    kinds = leaves_of(case)
    changed = LEAVES_CHANGED[case.order]
    if changed not in kinds:
        return
    which = kinds.index(changed)
    with torch.no_grad():
        leaves[which].mul_(0.5)
    _raises_or(lambda: gradients(case, data, outputs, leaves), grads, case.order)
    values = [x.detach().double() for x in leaves]
    data = expanded(case, replace(data, leaves=values))
    outputs = by_call(case, data, leaves)
    wrong = Expected(case, data).wrong([*outputs, *gradients(case, data, outputs, leaves)])
    assert not wrong, f"after {case.order}: {'; '.join(wrong)}"
