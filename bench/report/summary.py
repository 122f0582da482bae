"""`python -m trigru.bench.report.summary DIR`: what bench/on_gpu.sh left in DIR, as DIR/summary.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from trigru.command.tables import markdown

from .outcome import Outcome
from .report import OF_WORKLOADS, by_workload, notes, of_one_layer, place, table

Row = dict[str, Any]
# The lines of the table of speeds, for the README once they are measured: numbers, variant, hidden_size, batch,
# seq_len, packed.
HEADLINES = (
    ("bf16", "torch", 128, 64, 256, False),
    ("bf16", "torch", 512, 64, 1024, False),
    ("bf16", "torch", 1024, 64, 256, False),
    ("bf16", "torch", 512, 64, 1024, True),
    ("bf16", "cho", 512, 64, 256, False),
    ("tf32", "torch", 512, 64, 1024, False),
    ("fp32", "torch", 512, 64, 256, False),
)
DIRECTIONS = ("forward", "forward+backward")
MISSING = "not measured yet"
NUMBERS = {("bfloat16", "ieee"): "bf16", ("float16", "ieee"): "fp16", ("float32", "ieee"): "fp32"}


def numbers(row: Row) -> str:
    """The name of the row's dtype on the command line."""
    return NUMBERS.get((row["dtype"], row["precision"]), "tf32")


def speeds(rows: Sequence[Row]) -> str:
    """The table of speeds: inside a CUDA graph, us a step, and nn.GRU's time by ours; what has no row is so named."""
    timed = [row for row in rows if _counts(row) and of_one_layer(row)]
    lines = []
    for dtype, variant, hidden_size, batch, seq_len, packed in HEADLINES:
        sizes = {"variant": variant, "hidden_size": hidden_size, "batch": batch, "seq_len": seq_len, "packed": packed}
        own = [row for row in timed if numbers(row) == dtype and all(row[name] == x for name, x in sizes.items())]
        found = {row["direction"]: row for row in own}
        line = [f"{dtype}{', packed' if packed else ''}", f'"{variant}"', str(hidden_size), str(batch), str(seq_len)]
        for direction in DIRECTIONS:
            row = found.get(direction)
            line += [MISSING] * 2 if row is None else [f"{row['ours_ms'] * 1e3 / seq_len:.2f}", f"{row['ratio']:.2f}"]
        lines.append(line)
    headings = ["numbers", "variant", "hidden_size", "batch", "steps"]
    for direction in DIRECTIONS:
        headings += [f"{direction}, us a step", "nn.GRU's time by it"]
    return markdown(headings, lines)


def _counts(row: Row) -> bool:
    measured = row["suite"] == "layer" and row["device"] == "cuda" and row.get("ours_ms") is not None
    return measured and row["mode"] == "graph" and row["peer"] == "nn.GRU" and "error" not in row


def bounded(rows: Sequence[Row]) -> str:
    """Times by what the hardware allows, the closest first."""
    own = [row for row in rows if _counts(row) and row.get("bound_ratio") and row["direction"] in DIRECTIONS]
    headings = ["numbers", "variant", "direction", "schedule", "at", "ms", "bound, ms", "bound by", "times the bound"]
    return markdown(
        headings,
        [
            [
                numbers(row),
                row["variant"],
                row["direction"],
                row["schedule"],
                place(row),
                row["ours_ms"],
                row["bound_ms"],
                row["bound_by"],
                row["bound_ratio"],
            ]
            for row in sorted(own, key=lambda row: row["bound_ratio"])
        ],
    )


def outcomes(folder: Path) -> Iterator[tuple[str, dict[str, Any], Outcome]]:
    """Name, shared fields and outcome of every run below the folder."""
    for file in sorted(folder.glob("*/run.json")):
        run, found = outcome_in(file.parent)
        yield file.parent.name, run, found


def outcome_in(folder: Path) -> tuple[dict[str, Any], Outcome]:
    """Shared fields and outcome of the run that wrote the folder.

    Raises:
        OSError, ValueError: there is none.
    """
    run = json.loads((folder / "run.json").read_text())
    lines = [line for rows in sorted(folder.glob("*.jsonl")) for line in rows.read_text().splitlines()]
    skipped = {(entry["peer"], entry["reason"]): entry["cases"] for entry in run["skipped"]}
    rows = [json.loads(line) for line in lines]
    return run, Outcome(rows, run["left_out"], skipped, run["failed"], run["latencies"])


def parts(folder: Path) -> list[list[str]]:
    """The lines of parts.tsv: name, what became of it, seconds, the last line of its log."""
    file = folder / "parts.tsv"
    return [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []


def summary(folder: Path) -> str:
    """The text."""
    runs = list(outcomes(folder))
    rows = [row for _, _, outcome in runs for row in outcome.rows]
    said = ["# Benchmarks"]
    if runs:
        shared = runs[0][1]
        versions = ", ".join(f"{name} {version}" for name, version in shared["versions"].items())
        said[0] += f" on {shared['device_name']}"
        said.append(f"{shared['date']}, commit {shared['commit']}. {versions}.")
    said += ["## Parts", markdown(["part", "result", "seconds", "last line of its log"], parts(folder))]
    said += ["## Speed of one layer on the GPU", "Inside a CUDA graph, L2 flushed.", speeds(rows)]
    latencies = {name: seconds for _, _, outcome in runs for name, seconds in outcome.latencies.items()}
    if latencies:
        said.append("Latencies: " + ", ".join(f"{name[:-2]} {s * 1e6:.2f} us" for name, s in latencies.items()) + ".")
    said += ["## Every comparison", "Geometric means.", table(rows)]
    if each := by_workload(rows):
        said += [
            "## Workloads",
            "How many times as long nn.GRU, and the fastest other way, take.",
            markdown(OF_WORKLOADS, each),
        ]
    if any(row.get("bound_ratio") for row in rows):
        said += ["## What the hardware allows", bounded(rows)]
    said.append("## Without a time")
    for name, run, outcome in runs:
        said += [] if run["finished"] else [f"- {name}: the run was cut off; what it had measured is above"]
        said += [f"- {name}: {note}" for note in notes(outcome)]
    return _joined(said)


def _joined(said: Sequence[str]) -> str:
    """Paragraphs, but items of a list one below the other."""
    text = said[0]
    for before, after in pairwise(said):
        text += ("\n" if before.startswith("- ") and after.startswith("- ") else "\n\n") + after
    return text + "\n"


def main(argv: Sequence[str]) -> int:
    """Write the file; the exit code."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        print("usage: python -m trigru.bench.report.summary DIR", file=sys.stderr)
        return 2
    path = Path(argv[0]) / "summary.md"
    path.write_text(summary(Path(argv[0])))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
