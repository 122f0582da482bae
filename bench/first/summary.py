"""The rows of the first minutes as text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean
from typing import Any

from trigru.command.tables import markdown

Row = dict[str, Any]
HEADINGS = ["numbers", "variant", "I→H", "B", "T", "layers", "what", "mode", "ours, us", "torch's, us"]
HEADINGS += ["torch's by ours", "error", "torch's error", "failed"]
SHARED = ("device", "torch", "commit", "part")


def summary(rows: Sequence[Row]) -> str:
    """A table of the layers beside torch's own, then the other rows, part by part."""
    if not rows:
        return "# No rows"
    said = [f"# {rows[0]['device']}, torch {rows[0]['torch']}, commit {rows[0]['commit']}"]
    layers = [row for row in rows if row["part"] == "layer"]
    if layers:
        said.append("Microseconds a step of a layer. Torch's time by ours: above 1, trigru is faster.")
        said.append(markdown(HEADINGS, [_line(row) for row in layers]))
    good = [row["ratio"] for row in layers if "ratio" in row and (row["mode"], row["what"]) == ("graph", "training")]
    if good:
        mean = geometric_mean(good)
        said.append(f"Training in graphs: {len(good)} shapes, geometric mean {mean:.2f}, lowest {min(good):.2f}.")
    for part in dict.fromkeys(row["part"] for row in rows if row["part"] != "layer"):
        said += [f"## {part}", "\n".join(f"- {_fields(row)}" for row in rows if row["part"] == part)]
    return "\n\n".join(said)


def _line(row: Row) -> list[str]:
    size = f"{row['input_size']}→{row['hidden_size']}"
    layers = f"{row['layers']}{', both directions' if row['both'] else ''}"
    line = [row["numbers"], row["variant"], size, str(row["batch"]), str(row["steps"]), layers]
    line += [row.get("what", "check"), row.get("mode", "")]
    figures = ("ours_us", "torch_us", "ratio", "error", "torch_error")
    return [*line, *(f"{row[name]:.3g}" if name in row else "" for name in figures), row.get("failed", "")]


def _fields(row: Row) -> str:
    fields = {k: v for k, v in row.items() if k not in SHARED}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())
