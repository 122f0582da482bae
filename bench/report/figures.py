"""The figures of a run, as PNG files: times by size, speed-up over nn.GRU, work of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files are written; no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import StrMethodFormatter

from ..measuring.stats import geometric_mean
from .report import timed

Row = dict[str, Any]
AXES = {"hidden_size": "hidden size", "batch": "batch", "seq_len": "time steps"}
MARKS = "os^Dvx"
MICRO = 1e3  # ms to us


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write every figure that there are rows for, and return their paths."""
    drawn = []
    for suite in ("layer", "cpu"):
        own = [row for row in timed(rows) if row["suite"] == suite and not row["packed"]]
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
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    figure.suptitle(f"{rows[0]['device_name']}, {kind[0]}, {kind[2]}, {kind[1]}")
    for panel, (axis, name) in zip(panels, AXES.items(), strict=True):
        at = _base(own, axis)
        here = [row for row in own if all(row[other] == size for other, size in at.items())]
        for mark, (label, line) in zip(MARKS * 3, _lines(here), strict=False):
            _draw_line(panel, [(row[axis], *times) for row, times in line], label, mark)
        panel.set(xscale="log", yscale="log", xlabel=name, title=", ".join(f"{AXES[o]} {n}" for o, n in at.items()))
        sizes = sorted({row[axis] for row in here})
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("µs a step")
    panels[0].legend()
    figure.savefig(path, dpi=120)
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


def _draw_line(panel: Axes, points: Sequence[tuple[float, float, float, float]], label: str, mark: str) -> None:
    points = sorted(points)
    sizes, low, middle, high = ([point[i] for point in points] for i in range(4))
    bars = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
    panel.errorbar(sizes, middle, yerr=bars, label=label, marker=mark, capsize=2, linewidth=1)


def speedups(rows: Sequence[Row], path: Path) -> Path:
    """nn.GRU's time by ours, hidden size by batch, a panel a variant; where lengths differ, their geometric mean."""
    kind = _main_kind(rows)
    own = [row for row in rows if _kind(row) == kind and row["peer"] == "nn.GRU"]
    variants = list(dict.fromkeys(row["variant"] for row in own))
    figure, panels = plt.subplots(
        1, len(variants), figsize=(1 + 5 * len(variants), 4.4), layout="constrained", squeeze=False
    )
    figure.suptitle(f"nn.GRU's time by trigru's: {rows[0]['device_name']}, {kind[0]}, {kind[2]}, {kind[1]}")
    most = max(2.0, *(row["ratio"] for row in own))
    for panel, variant in zip(panels[0], variants, strict=True):
        cells: dict[tuple[int, int], list[float]] = {}
        for row in own:
            if row["variant"] == variant:
                cells.setdefault((row["batch"], row["hidden_size"]), []).append(row["ratio"])
        batches, sizes = (sorted({cell[i] for cell in cells}) for i in range(2))
        means = [[_mean(cells.get((batch, size))) for size in sizes] for batch in batches]
        image = panel.imshow(means, norm=TwoSlopeNorm(1.0, 0.0, most), cmap="RdYlGn", aspect="auto", origin="lower")
        for y, line in enumerate(means):
            for x, value in enumerate(line):
                panel.text(x, y, "" if value != value else f"{value:.2f}", ha="center", va="center", fontsize=9)
        panel.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        panel.set_yticks(range(len(batches)), [str(batch) for batch in batches])
        panel.set(xlabel="hidden size", ylabel="batch", title=f'"{variant}"')
    figure.colorbar(image, ax=panels[0].tolist())
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _mean(ratios: list[float] | None) -> float:
    return geometric_mean(ratios) if ratios else float("nan")


def work_of_a_step(rows: Sequence[Row], path: Path) -> Path:
    """Longest path of a warp, and bytes loaded beside their floor, a bar a kernel."""
    names = [
        f"{row['schedule']} {row['kernel']}, H {row['hidden_size']}"
        + (f" ({row['block_b']}x{row['block_h']})" if row["schedule"] not in ("stepwise", "persistent") else "")
        for row in rows
    ]
    figure, panels = plt.subplots(1, 2, figsize=(14, 1.5 + 0.3 * len(rows)), layout="constrained", sharey=True)
    figure.suptitle(f"Work of a step, {rows[0]['target']}, {rows[0]['dtype']}: counts, not times")
    colours = ["C0" if row["schedule"] in ("stepwise", "persistent") else "C1" for row in rows]
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
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
