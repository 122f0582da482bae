"""The figure of the demo: how training went, and what the gates do on one sequence."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from .data import Labelled
from .model import Classifier, gates_over_time
from .training import History

matplotlib.use("Agg")  # a file is written; no display is needed

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

UPDATE_MEANING = {
    "torch": "new state: 1 keeps the old, 0 takes the candidate",
    "cho": "new state: 1 keeps the old, 0 takes the candidate",
    "chung": "new state: 0 keeps the old, 1 takes the candidate",
}


def draw(model: Classifier, history: History, test_set: Labelled, path: Path) -> None:
    """Draw the figure on the longest of the test sequences and save it as a PNG file."""
    lengths = [len(sequence) for sequence in test_set.sequences]
    index = lengths.index(max(lengths))
    sequence = test_set.sequences[index]
    resets, updates, states = gates_over_time(model, sequence)
    order = updates.mean(0).argsort()  # neighbours behave alike, so that the eye sees groups

    figure, axes = plt.subplot_mosaic(
        [["loss", "loss", "accuracy", "accuracy"], ["input", "reset", "update", "state"]],
        figsize=(16, 8.5),
        height_ratios=(3, 4),
        layout="constrained",
    )
    figure.suptitle(f"{model.gru} trained on JapaneseVowels", fontsize=12)
    _curves(axes, history)
    speaker = int(test_set.labels[index]) + 1
    channels = axes["input"]
    image = channels.imshow(
        sequence.cpu().T.numpy(), aspect="auto", cmap="coolwarm", vmin=-3, vmax=3, interpolation="none"
    )
    channels.set_title(f"input: test sequence {index + 1}, speaker {speaker}\nstandard deviations from the mean")
    channels.set_ylabel("channel")
    figure.colorbar(image, ax=channels)
    panels = {
        "reset": (resets, "reset gate r\ncandidate: 1 sees the old state, 0 does not", "viridis", 0),
        "update": (updates, f"update gate z\n{UPDATE_MEANING[model.gru.variant]}", "viridis", 0),
        "state": (states, "state h\nwhat the gates made of it", "coolwarm", -1),
    }
    for name, (gate, title, colors, low) in panels.items():
        image = axes[name].imshow(
            gate[:, order].T.numpy(), aspect="auto", cmap=colors, vmin=low, vmax=1, interpolation="none"
        )
        axes[name].set_title(title)
        axes[name].set_ylabel("hidden unit (forward direction), sorted by mean z")
        figure.colorbar(image, ax=axes[name])
    for name in ("input", *panels):
        axes[name].title.set_fontsize(9)
        axes[name].set_xlabel("step")
    figure.savefig(path, format="png", dpi=110)
    plt.close(figure)


def _curves(axes: dict[str, plt.Axes], history: History) -> None:
    epochs = range(1, len(history) + 1)
    axes["loss"].semilogy(epochs, [epoch.loss for epoch in history], marker=".")
    axes["loss"].set_title("training loss (cross-entropy)", fontsize=10)
    accuracy = axes["accuracy"]
    accuracy.plot(epochs, [epoch.train_accuracy for epoch in history], marker=".", label="training, during the epoch")
    accuracy.plot(epochs, [epoch.test_accuracy for epoch in history], marker=".", label="held out, after it")
    accuracy.set_title(f"accuracy: {history[-1].test_accuracy:.2%} held out at the end", fontsize=10)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    accuracy.legend(loc="lower right")
    for axis in (axes["loss"], accuracy):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
