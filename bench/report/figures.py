"""The figures of a run, as PNG files: times by size, speed-up over nn.GRU, work of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import log
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files are written; no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, StrMethodFormatter

from .report import of_one_layer, timed

Row = dict[str, Any]
AXES = {"hidden_size": "hidden size", "batch": "batch", "seq_len": "time steps"}
MARKS = "os^Dvx"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#767676", "#CC79A7", "#56B4E9")  # Okabe and Ito's: told apart by everyone
PANELS = 4  # side by side, so that numbers can be read at 800 pixels
DPI = 120
MICRO = 1e3  # ms to us


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write every figure that there are rows for, and return their paths."""
    drawn = []
    for suite in ("layer", "cpu"):
        own = [row for row in timed(rows) if row["suite"] == suite and not row["packed"] and of_one_layer(row)]
        if own:
            drawn += [times_by_size(own, out / f"{suite}-time.png"), speedups(own, out / f"{suite}-speedup.png")]
    counted = [row for row in rows if row["suite"] == "work"]
    if counted:
        drawn.append(work_of_a_step(counted, out / "work.png"))
    return drawn


def _kind(row: Row) -> tuple[str, str, str]:
    numbers = "TF32" if row["precision"] == "tf32" else row["dtype"]
    return numbers, row["mode"], row["direction"]


def _main_kind(rows: Sequence[Row]) -> tuple[str, str, str]:
    """What most rows are of; training inside a graph where that was measured."""
    kinds = [_kind(row) for row in rows]
    return max(
        dict.fromkeys(kinds), key=lambda kind: (kinds.count(kind), kind[1] == "graph", kind[2] == "forward+backward")
    )


def _base(rows: Sequence[Row], axis: str) -> dict[str, int]:
    """Sizes of the other axes at which `axis` takes the most values."""
    others = [name for name in AXES if name != axis]
    values: dict[tuple[int, ...], set[int]] = {}
    for row in rows:
        values.setdefault(tuple(row[name] for name in others), set()).add(row[axis])
    best = max(values, key=lambda at: (len(values[at]), at))
    return dict(zip(others, best, strict=True))


def times_by_size(rows: Sequence[Row], path: Path) -> Path:
    """Time of a step against each size, the others held: ours by variant, peers once; bars from 20th to 80th
    percentile."""
    kind = _main_kind(rows)
    own = [row for row in rows if _kind(row) == kind]
    figure, panels = plt.subplots(3, 1, figsize=(8.4, 10.5), layout="constrained")
    figure.suptitle(f"Time of a step, lower is better: {kind[2]}, {kind[0]}, {rows[0]['device_name']}", fontsize=12)
    for panel, (axis, name) in zip(panels, AXES.items(), strict=True):
        at = _base(own, axis)
        here = [row for row in own if all(row[other] == size for other, size in at.items())]
        for i, (label, line) in enumerate(_lines(here)):
            _draw_line(panel, [(row[axis], *times) for row, times in line], label, i)
        panel.set(xscale="log", yscale="log", xlabel=name, ylabel="µs a step")
        panel.set_title(", ".join(f"{AXES[o]} {n}" for o, n in at.items()), fontsize=10)
        sizes = sorted({row[axis] for row in here})
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, list[tuple[Row, list[float]]]]]:
    """Label and (row, [20th, 50th, 80th percentile of us a step]) of each line of a panel."""
    percentiles = ("p20", "p50", "p80")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant and row["peer"] == "nn.GRU"]
        yield (
            f'trigru "{variant}"',
            [(row, [row[f"ours_ms_{p}"] * MICRO / row["seq_len"] for p in percentiles]) for row in mine],
        )
    first = rows[0]["variant"] if rows else None
    for peer in dict.fromkeys(row["peer"] for row in rows):
        its = [row for row in rows if row["peer"] == peer and row["variant"] == first]
        yield peer, [(row, [row[f"peer_ms_{p}"] * MICRO / row["seq_len"] for p in percentiles]) for row in its]


def _draw_line(panel: Axes, points: Sequence[tuple[float, float, float, float]], label: str, i: int) -> None:
    points = sorted(points)
    sizes, low, middle, high = ([point[i] for point in points] for i in range(4))
    bars = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
    panel.errorbar(
        sizes, middle, yerr=bars, label=label, marker=MARKS[i % len(MARKS)], color=COLOURS[i % len(COLOURS)], capsize=2
    )


def speedups(rows: Sequence[Row], path: Path) -> Path:
    """nn.GRU's time by ours: a panel for each variant and length, hidden size by batch. Every cell is one row."""
    kind = _main_kind(rows)
    own = [row for row in rows if _kind(row) == kind and row["peer"] == "nn.GRU"]
    variants = list(dict.fromkeys(row["variant"] for row in own))
    counted = Counter(row["seq_len"] for row in own)
    lengths = sorted(sorted(counted, key=lambda steps: -counted[steps])[:PANELS])
    sizes, batches = (sorted({row[name] for row in own}) for name in ("hidden_size", "batch"))
    extent = 1.2 + len(lengths) * max(1.4, 0.62 * len(sizes)), 1.1 + len(variants) * max(1.1, 0.36 * len(batches) + 0.5)
    figure, panels = plt.subplots(
        len(variants), len(lengths), figsize=extent, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    others = f"; {len(counted) - len(lengths)} other lengths are in the rows" if len(counted) > len(lengths) else ""
    numbers, mode, direction = kind
    figure.suptitle(
        f"How many times faster trigru is than nn.GRU (above 1: faster)\n{direction}, {numbers}, "
        f"{rows[0]['device_name']}{' inside a graph' if mode == 'graph' else ''}{others}",
        fontsize=11,
    )
    most = max(2.0, *(max(row["ratio"], 1 / row["ratio"]) for row in own))
    scale = LogNorm(1 / most, most)
    for line, variant in zip(panels, variants, strict=True):
        line[0].set_ylabel(f'"{variant}"\nbatch')
        for panel, steps in zip(line, lengths, strict=True):
            here = [row for row in own if (row["variant"], row["seq_len"]) == (variant, steps)]
            found = {(row["batch"], row["hidden_size"]): row["ratio"] for row in here}
            cells = [[found.get((batch, size), float("nan")) for size in sizes] for batch in batches]
            panel.imshow(cells, norm=scale, cmap="PuOr", aspect="auto", origin="lower")
            for y, values in enumerate(cells):
                for x, ratio in enumerate(values):
                    dark = abs(log(ratio)) > 0.6 * log(most) if ratio == ratio else False
                    shown = "" if ratio != ratio else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"
                    panel.text(x, y, shown, ha="center", va="center", fontsize=10, color="white" if dark else "black")
            panel.set_xticks(range(len(sizes)), [str(size) for size in sizes])
            panel.set_yticks(range(len(batches)), [str(batch) for batch in batches])
    for panel, steps in zip(panels[0], lengths, strict=True):
        panel.set_title(f"{steps} steps", fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("hidden size")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def work_of_a_step(rows: Sequence[Row], path: Path) -> Path:
    """Longest path of a warp, and bytes loaded beside their floor, a bar a kernel."""
    names = [
        f"{row['schedule']} {row['kernel']}, H {row['hidden_size']}"
        + (f" ({row['block_b']}x{row['block_h']})" if row["schedule"] not in ("stepwise", "persistent") else "")
        for row in rows
    ]
    figure, panels = plt.subplots(1, 2, figsize=(9, 1.5 + 0.3 * len(rows)), layout="constrained", sharey=True)
    said = "counts, not times; fewer is better"
    figure.suptitle(f"Work of a step, {rows[0]['target']}, {rows[0]['dtype']}: {said}", fontsize=12)
    colours = [COLOURS[0 if row["schedule"] in ("stepwise", "persistent") else 1] for row in rows]
    bars: list[tuple[str, Callable[[Row], int]]] = [
        ("longest path of a warp, instructions", lambda row: row["path"]),
        ("bytes loaded (line: the fewest possible)", lambda row: row["load_bytes"]),
    ]
    for panel, (name, value) in zip(panels, bars, strict=True):
        panel.barh(range(len(rows)), [value(row) for row in rows], color=colours)
        panel.set(xlabel=name)
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.grid(axis="x", alpha=0.3)
    for y, row in enumerate(rows):
        panels[1].vlines(row["load_floor"], y - 0.4, y + 0.4, color="black")
    panels[0].set_yticks(range(len(rows)), names, fontsize=8)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path
