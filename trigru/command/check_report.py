"""What `trigru check` found, as a table or as JSON."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

from ..planning.plan import KERNELS
from .tables import fitted, wrapped


@dataclass(frozen=True)
class Result:
    """What came of a schedule over all cases: the largest relative error beside its tolerance, or an exception."""

    where: str
    schedule: str
    variant: str
    numbers: str
    cases: int
    error: float
    tolerance: float
    worst: str
    """The result and the layer with the largest error, or what was raised."""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Refusal:
    """A schedule that was not run, and why."""

    where: str
    schedule: str
    variant: str
    numbers: str
    reason: str


def versions() -> dict[str, str]:
    """The versions of what decides over results, by package name; without those that are not installed."""
    installed = {}
    for name in ("trigru", "torch", "triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def json_report(results: list[Result], refusals: list[Refusal], passed: bool) -> str:
    """One JSON object; an error that is no number (a NaN in a result, or an exception) is null."""
    rows: list[dict[str, Any]] = [
        {**asdict(x), "error": x.error if x.error < float("inf") else None, "passed": x.passed} for x in results
    ]
    whole = {"passed": passed, "versions": versions(), "results": rows, "not_checked": [asdict(x) for x in refusals]}
    return json.dumps(whole, indent=2)


def report(results: list[Result], refusals: list[Refusal], *, checkout: bool) -> list[str]:
    """The lines that `trigru check` prints; checkout: whether --ptx can be offered here."""
    lines = [", ".join(f"{name} {version}" for name, version in versions().items())]
    if results:
        headings = ["where", "schedule", "variant", "dtype", "layers", "relative error", "allowed", "result"]
        rows = [
            [r.where, r.schedule, r.variant, r.numbers, r.cases, r.error, r.tolerance, "ok" if r.passed else "WRONG"]
            for r in results
        ]
        lines += [
            wrapped("Largest ||error|| / ||reference|| of outputs and gradients; the reference is in float64."),
            "",
        ]
        lines += [fitted(headings, rows)]
    wrong = [r for r in results if not r.passed]
    lines += [""] if wrong else []
    lines += [_item(f"WRONG: {r.schedule}, {r.variant}, {r.numbers} on {r.where}: {r.worst}", "") for r in wrong]
    if refusals:
        lines += ["", "Not checked, because it cannot run:"]
        lines += [_item(f"{who}: {why}") for who, why in _grouped(refusals)]
    if not any(r.schedule in KERNELS for r in results):
        why = "" if torch.cuda.is_available() else ": there is no GPU that torch can use"
        where = "" if checkout else "in a checkout of the repository, "
        said = f"No Triton kernel was executed{why}. To compile them and execute the result on the CPU:"
        lines += ["", wrapped(said), _item(f"{where}trigru check --ptx (some minutes; with --quick, less than one)")]
    lines += ["", _verdict(len(wrong), len(results))]
    return lines


def _item(text: str, lead: str = "  ") -> str:
    return wrapped(text, indent="    ", first=lead)


def _grouped(refusals: list[Refusal]) -> list[tuple[str, str]]:
    """The refusals that share place, reason and schedules as one line: (who, why)."""
    groups: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for r in refusals:
        group = groups.setdefault((r.where, r.reason), {"schedules": {}, "numbers": {}})
        group["schedules"][r.schedule] = None
        group["numbers"][r.numbers] = None
    return [
        (f"{', '.join(group['schedules'])} on {where} ({', '.join(group['numbers'])})", reason)
        for (where, reason), group in groups.items()
    ]


def _verdict(wrong: int, checked: int) -> str:
    if not checked:
        return "Nothing could be checked."
    return f"{wrong} of {checked} are wrong." if wrong else f"All {checked} are within what rounding explains."
