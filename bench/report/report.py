"""The table on the terminal: a line for each kind of measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trigru.command.tables import fitted, markdown, wrapped

from ..measuring.stats import geometric_mean
from .outcome import Outcome

BY_SCHEDULE = ("overhead", "work")  # suites that measure each schedule by its name
KIND = ("suite", "dtype", "precision", "variant", "packed", "memory", "mode", "direction", "peer")
HEADINGS = ("suite", "numbers", "variant", "what", "against", "rows", "trigru, on average", "at worst", "at")
OF_WORKLOADS = ("workload", "numbers", "what", "how", "ms", "nn.GRU by it", "fastest other way", "by it")
HEADLINE = ("layer", "cpu")  # suites whose first line says it all
WORDS = {"memory": ("less", "more"), "work": ("fewer", "more")}  # of bytes; the others measure times


def timed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that have a ratio."""
    return [row for row in rows if row.get("ratio") is not None and "error" not in row]


def lines(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    """A line for each kind: geometric mean and lowest of its ratios (peer's time or bytes by ours), and where."""
    kinds: dict[tuple, list[dict[str, Any]]] = {}
    for row in timed(rows):
        schedule = row.get("schedule") if row["suite"] in BY_SCHEDULE else None
        kinds.setdefault((schedule, *(row.get(name) for name in KIND)), []).append(row)
    found = []
    for kind, own in kinds.items():
        named = dict(zip(("schedule", *KIND), kind, strict=True))
        lowest = min(own, key=lambda row: row["ratio"])
        what = [
            named["schedule"] or "",
            named["direction"] or "kept bytes",
            "packed" if named["packed"] else "",
            named["memory"] or "",
        ]
        what += ["in a graph" if named["mode"] == "graph" else ""]
        numbers = "" if named["dtype"] is None else "tf32" if named["precision"] == "tf32" else named["dtype"]
        found.append(
            [
                named["suite"],
                numbers,
                named["variant"] or "",
                " ".join(word for word in what if word and word != "keep"),
                named["peer"],
                len(own),
                geometric_mean([row["ratio"] for row in own]),
                lowest["ratio"],
                place(lowest),
            ]
        )
    return found


def by_workload(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    """A line for each workload and pass: milliseconds, nn.GRU's time by it, and the fastest of the other ways."""
    kinds: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in timed(rows):
        if row["suite"] == "workloads":
            kind = row["workload"], row["dtype"], row["direction"], row["mode"]
            kinds.setdefault(kind, {})[row["peer"]] = row
    found: list[list[object]] = []
    for (workload, dtype, direction, mode), ways in kinds.items():
        gru = ways.pop("nn.GRU", None)
        best = min(ways.values(), key=lambda row: row["ratio"], default=None)
        mine = (gru or best or {})["ours_ms"]
        other = [None, None] if best is None else [best["peer"], best["ratio"]]
        ratio = None if gru is None else gru["ratio"]
        found.append([workload, dtype, direction, "in a graph" if mode == "graph" else mode, mine, ratio, *other])
    return found


def place(row: dict[str, Any]) -> str:
    """Sizes of a row, short; of a workload its name."""
    if "workload" in row:
        return str(row["workload"])
    named = {"H": "hidden_size", "B": "batch", "T": "seq_len"}
    said = [f"{short} {row[name]}" for short, name in named.items() if row.get(name) is not None]
    if row.get("input_size") not in (None, row.get("hidden_size")):
        said.insert(0, f"I {row['input_size']}")
    if row.get("num_layers", 1) > 1:
        said.append(f"{row['num_layers']} layers")
    if row.get("bidirectional"):
        said.append("both directions")
    return ", ".join(said)


def of_one_layer(row: dict[str, Any]) -> bool:
    """Whether a row's sizes say all of it: one layer, one direction, inputs as wide as the state, no single step."""
    other = row.get("input_size") not in (None, row["hidden_size"]) or row.get("cell")
    return not other and row.get("num_layers", 1) == 1 and not row.get("bidirectional")


def better(ratio: float, suite: str) -> str:
    """What a ratio (the other's time or bytes by ours) says of trigru, in words."""
    good, bad = WORDS.get(suite, ("faster", "slower"))
    times = f"{max(ratio, 1 / ratio):.2f}x"
    if times == "1.00x":
        return "the same"
    return f"{times} {good if ratio > 1 else bad}"


def worded(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    """The lines with words in place of ratios."""
    return [
        [*line[:-3], *(better(float(str(ratio)), str(line[0])) for ratio in line[-3:-1]), line[-1]]
        for line in lines(rows)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    return markdown(HEADINGS, worded(rows))


def headline(rows: Sequence[dict[str, Any]]) -> str | None:
    """What a run came for, in a sentence: training a layer, against nn.GRU."""
    own = [
        row
        for row in timed(rows)
        if row["suite"] in HEADLINE and row["peer"] == "nn.GRU" and row["variant"] == "torch" and not row["packed"]
        if of_one_layer(row)
    ]
    own = [row for row in own if row["direction"] == "forward+backward"]
    kinds = {(row["suite"], row["dtype"], row["precision"], row["mode"], row["memory"]) for row in own}
    if len(kinds) != 1:
        return None
    ratios = [row["ratio"] for row in own]
    sizes = f"{len(own)} sizes" if len(own) > 1 else place(own[0])
    said = f"Training a layer: trigru is {better(geometric_mean(ratios), 'layer')} than nn.GRU".replace(
        " same than", " same as"
    )
    return f"{said} ({sizes}; from {better(min(ratios), 'layer')} to {better(max(ratios), 'layer')})"


def show(outcome: Outcome) -> None:
    """Print the headline, the table, then what has no time and why."""
    if (said := headline(outcome.rows)) is not None:
        print(f"{wrapped(said)}\n")
    if found := worded(outcome.rows):
        print(fitted(HEADINGS, found))
    if each := by_workload(outcome.rows):
        print(f"\n{fitted(OF_WORKLOADS, each)}")
    for note in notes(outcome):
        print(wrapped(note, indent="    ", first=""))


def notes(outcome: Outcome) -> list[str]:
    """What failed, was skipped or was left out, a line each."""
    said = [f"failed: suite {suite}: {error}" for suite, error in outcome.failed.items()]
    wrong = [row for row in outcome.rows if "error" in row]
    for row in wrong:
        way = ", ".join(str(row[name]) for name in ("direction", "mode") if name in row)
        said.append(
            f"no time: {row['suite']} {row['variant']} {place(row)} {way} against {row['peer']}: {row['error']}"
        )
    said += [f"skipped: {peer} in {n} cases: {reason}" for (peer, reason), n in outcome.skipped.items()]
    if outcome.left_out:
        first = "; ".join(outcome.left_out[:5])
        more = " and more, see run.json" if len(outcome.left_out) > 5 else ""
        said.append(f"left out, for the time was up: {len(outcome.left_out)} ({first}{more})")
    return said
