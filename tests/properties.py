"""What holds for every call: `check` asks it of one of property_cases.py. Used by test_properties.py for seconds and by
soak.py for as long as one likes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accuracy import Overflowing, Rounding
from property_cases import (
    LEAVES_CHANGED,
    RESULTS_CHANGED,
    Case,
    Data,
    data_of,
    leaves_of,
)
from property_runs import Outputs, by_call, by_reference, by_torch
from torch import Tensor

FACTOR = 16  # over the largest error of so few plain runs
ULPS = 8  # of a result's norm: always allowed, before the factor
NUDGED = 10  # times, of which no more are made than it takes
CLOSE = 2.0**-36  # as a share of numbers: so near that a result moves in proportion


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
            self.plain.append(_run(by_torch, case, data, case.dtype))
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
