"""The figure of the demo: how training went, and what the gates do on one sequence."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from .data import Labelled
from .model import Classifier, gates_over_time
from .timing import StepTimes
from .training import History

matplotlib.use("Agg")  # a file is written; no display is needed

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

UPDATE_MEANING = {
    "torch": "new state: 1 keeps the old, 0 takes the candidate",
    "cho": "new state: 1 keeps the old, 0 takes the candidate",
    "chung": "new state: 0 keeps the old, 1 takes the candidate",
}


BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"  # Okabe and Ito's, told apart by everyone
GATES, STATES = "cividis", "RdBu_r"
"""Colour maps of what goes from 0 to 1, and from -1 to 1."""


def draw(
    model: Classifier,
    history: History,
    test_set: Labelled,
    errors: dict[str, float],
    allowed: float,
    times: StepTimes,
    path: Path,
) -> None:
    """Draw how training went, the errors of the gradients, the time of a step, and the gates on the longest of the test
    sequences."""
    lengths = [len(sequence) for sequence in test_set.sequences]
    sequence = test_set.sequences[lengths.index(max(lengths))]
    resets, updates, states = gates_over_time(model, sequence)
    order = updates.mean(0).argsort()  # neighbours behave alike, so that the eye sees groups

    figure, axes = plt.subplot_mosaic(
        [["loss", "accuracy"], ["errors", "times"], ["input", "reset"], ["update", "state"]],
        figsize=(8.4, 11.5),
        height_ratios=(3, 3, 4, 4),
        layout="constrained",
    )
    variant = model.gru.variant
    figure.suptitle(f'trigru.GRU, variant "{variant}", trained to tell speakers apart (JapaneseVowels)', fontsize=12)
    _curves(axes, history)
    _errors(axes["errors"], errors, allowed)
    _times(axes["times"], times)
    axes["input"].plot(sequence.cpu().numpy(), color=GREY, linewidth=0.8)
    axes["input"].set_title(f"input: {sequence.shape[1]} cepstrum coefficients of one recording")
    panels = {
        "reset": (resets, "reset gate r\n1 lets the old state into the candidate", GATES, 0),
        "update": (updates, f"update gate z\n{UPDATE_MEANING[variant]}", GATES, 0),
        "state": (states, "state h\nwhat the gates made of it", STATES, -1),
    }
    for name, (gate, title, colors, low) in panels.items():
        image = axes[name].imshow(
            gate[:, order].T.numpy(), aspect="auto", cmap=colors, vmin=low, vmax=1, interpolation="none"
        )
        axes[name].set_title(title)
        axes[name].set_ylabel("hidden unit, by mean z")
        figure.colorbar(image, ax=axes[name], label={"reset": "r", "update": "z", "state": "h"}[name])
    for name in ("input", *panels):
        axes[name].set_xlabel("step")
    for axis in axes.values():
        axis.title.set_fontsize(10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _curves(axes: dict[str, plt.Axes], history: History) -> None:
    epochs = range(1, len(history) + 1)
    axes["loss"].plot(epochs, [epoch.loss for epoch in history], marker=".", color=BLUE)
    axes["loss"].set_title("training loss, cross-entropy (lower is better)")
    if len(history) > 1:
        axes["loss"].set_yscale("log")
    accuracy = axes["accuracy"]
    series = (
        ("training, during the epoch", "train_accuracy", ORANGE, "o"),
        ("held out, after it", "test_accuracy", BLUE, "s"),
    )
    for label, name, color, mark in series:
        values = [getattr(epoch, name) for epoch in history]
        accuracy.plot(epochs, values, marker=mark, markersize=3, color=color, label=label)
    accuracy.set_title(f"accuracy: {history[-1].test_accuracy:.2%} held out at the end")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    accuracy.legend(loc="lower right", fontsize=9)
    for axis in (axes["loss"], accuracy):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)


def _errors(axis: plt.Axes, errors: dict[str, float], allowed: float) -> None:
    """A dot a gradient, on a log axis, and the line of what is allowed."""
    names = [name.replace("_reverse", " rev.") for name in errors]
    axis.scatter(list(errors.values()), range(len(errors)), color=BLUE, zorder=2)
    axis.axvline(allowed, color=ORANGE, linestyle="--")
    axis.text(allowed, -0.9, "allowed ", color=ORANGE, ha="right", va="center", fontsize=9)
    axis.set_xscale("log")
    axis.set_yticks(range(len(errors)), names, fontsize=9)
    axis.set_ylim(len(errors) - 0.5, -1.5)
    axis.set_xlabel("||error|| / ||reference|| in float64")
    axis.set_title("gradients checked (further left is better)")
    axis.grid(alpha=0.3)


def _times(axis: plt.Axes, times: StepTimes) -> None:
    bars = axis.barh([0, 1], [times.ours_ms, times.peer_ms], color=[BLUE, GREY], height=0.6)
    axis.bar_label(bars, [f" {ms:.2f} ms" for ms in (times.ours_ms, times.peer_ms)], fontsize=9)
    axis.set_yticks([0, 1], ["trigru.GRU", "nn.GRU,\nsame size"])
    axis.set_xlim(0, 1.25 * max(times.ours_ms, times.peer_ms))
    axis.invert_yaxis()
    axis.set_xlabel("ms (shorter is better)")
    axis.set_title(f"forward and backward of one batch: {times.said}")
