"""Train a bidirectional GRU to tell nine speakers apart by how they say two Japanese vowels.

The data set JapaneseVowels (270 training and 370 test recordings, 7 to 29 steps of 12 channels) comes with the package
aeon. The GRU is trained from scratch on packed sequences; then its gradients are compared with those of the float64
reference, a training step is timed beside nn.GRU's, and a figure shows all of that and what the gates do.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from ..command.machine import devices_named
from ..command.options import Refused, Unable, at_least, place_to_write, seed
from ..command.tables import wrapped
from ..command.threads import one_thread
from ..explain import explain
from ..planning.plan import SCHEDULES, choose
from ..reference import VARIANTS
from .check import gradient_errors, tolerance
from .data import CHANNELS, SPEAKERS, load
from .model import Classifier
from .timing import step_times
from .training import History, train

HIDDEN_SIZE = 64
BATCH_SIZE = 32
FORMATS = (".png", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `trigru demo`."""
    parser.add_argument("--variant", choices=VARIANTS, default="torch", help="equations (default: %(default)s)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="auto", help="how it runs (default: %(default)s)")
    parser.add_argument("--epochs", type=at_least(1), default=40, help="passes over the data (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda where there is one, else cpu)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo.png"),
        help="the figure: a file that ends in .png, .pdf or .svg, or a folder (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")


def run(args: argparse.Namespace) -> int:
    """Train, check, compare, draw. Returns 1, with a message, if something is missing or a gradient is wrong."""
    out = _place_of_figure(args.out)
    device = devices_named(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))[0]
    try:
        # All the extra's packages before the training, not after it.
        from tqdm import tqdm

        from .figure import draw

        train_set, test_set = load()
    except ImportError as error:
        raise Unable(f'{error}; the demo needs its extra, demo: in a checkout pip install -e ".[demo]"') from None
    train_set, test_set = train_set.to(device), test_set.to(device)
    try:
        choose(args.schedule, device, torch.float32, BATCH_SIZE, HIDDEN_SIZE)
    except RuntimeError as error:
        raise Unable(str(error)) from None

    say = (lambda line: None) if args.json else functools.partial(print, flush=True)
    torch.manual_seed(args.seed)
    model = Classifier(CHANNELS, HIDDEN_SIZE, SPEAKERS, variant=args.variant, schedule=args.schedule).to(device)
    sequences, lengths = len(train_set.sequences), sorted(len(sequence) for sequence in train_set.sequences)
    say(
        wrapped(
            f"JapaneseVowels: {sequences} sequences of {lengths[0]} to {lengths[-1]} steps to train on, "
            f"{len(test_set.sequences)} held out, {SPEAKERS} speakers"
        )
    )
    say(wrapped(f"{model.gru}, {sum(p.numel() for p in model.parameters())} parameters with the classifier"))
    plan = explain(model.gru, train_set.packed(range(BATCH_SIZE)))
    say(wrapped(str(plan)))

    history = History()
    start = time.perf_counter()
    epochs = train(model, train_set, test_set, epochs=args.epochs, batch_size=BATCH_SIZE, seed=args.seed)
    threads = one_thread() if device.type == "cpu" else contextlib.nullcontext()
    with threads:
        with tqdm(epochs, total=args.epochs, unit="epoch", disable=None) as progress:  # None: on a terminal alone
            for epoch in progress:
                history.append(epoch)
                progress.set_postfix_str(f"loss {epoch.loss:.4f}, held-out accuracy {epoch.test_accuracy:.2%}")
        seconds = time.perf_counter() - start
        passes = "1 epoch" if args.epochs == 1 else f"{args.epochs} epochs"
        say(f"held-out accuracy {history[-1].test_accuracy:.2%} after {passes}, {seconds:.1f} s")
        batch = train_set.packed(range(BATCH_SIZE))
        times = step_times(model.gru, batch)
    threads_said = ", one thread" if device.type == "cpu" else ""
    say(
        wrapped(
            f"a training step of the layer on {len(batch.data)} rows{threads_said}: {times.ours_ms:.2f} ms, nn.GRU of "
            f"the same size {times.peer_ms:.2f} ms: {times.said}"
        )
    )

    errors = gradient_errors(model.gru, test_set.packed(range(BATCH_SIZE)))
    allowed = tolerance(device)
    say(wrapped(f"gradients against the float64 reference, ||error|| / ||reference||, at most {allowed:g} allowed:"))
    for name, relative in errors.items():
        say(f"  {name:22}{relative:.1e}{'' if relative <= allowed else '  WRONG'}")

    draw(model, history, test_set, errors, allowed, times, out)
    say(f"figure: {out}")
    right = all(relative <= allowed for relative in errors.values())  # a NaN is wrong too
    if args.json:
        found = {"accuracy": history[-1].test_accuracy, "epochs": args.epochs, "seconds": seconds}
        found |= {"schedule": plan.schedule, "reason": plan.reason, "gradient_errors": errors, "allowed": allowed}
        print(json.dumps({**found, "gradients_right": right, "step_ms": asdict(times), "figure": str(out)}))
    if not right:
        raise Unable("gradients differ from the reference")
    return 0


def _place_of_figure(out: Path) -> Path:
    """The file, which can be written."""
    out = out if out.suffix else out / "demo.png"
    if out.is_dir():
        out = out / "demo.png"
    if out.suffix.lower() not in FORMATS:
        raise Refused(f"--out: expected a file that ends in {', '.join(FORMATS)}, or a folder, got {out}")
    place_to_write("--out", out.parent)
    return out
