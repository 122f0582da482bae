"""Train a bidirectional GRU to tell nine speakers apart by how they say two Japanese vowels.

The data set JapaneseVowels (270 training and 370 test recordings, 7 to 29 steps of 12 channels) comes with the package
aeon. The GRU is trained from scratch on packed sequences; then its gradients are compared with those of the float64
reference, and a figure shows how training went and what the gates do.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

import torch

from ..command.threads import one_thread
from ..explain import explain
from ..planning.plan import SCHEDULES, choose
from ..reference import VARIANTS
from .check import gradient_errors, tolerance
from .data import CHANNELS, SPEAKERS, load
from .model import Classifier
from .training import History, train

HIDDEN_SIZE = 64
BATCH_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `trigru demo`."""
    parser.add_argument("--variant", choices=VARIANTS, default="torch", help="equations (default: %(default)s)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="auto", help="how it runs (default: %(default)s)")
    parser.add_argument("--epochs", type=_at_least_one, default=40, help="passes over the data (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="the figure (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Train, check, draw. Returns 1, with a message, if something is missing or a gradient is wrong."""
    try:
        # All the extra's packages before the training, not after it.
        from tqdm import tqdm

        from .figure import draw

        train_set, test_set = load()
    except ImportError as error:
        return _failed(f'{error}; the demo needs its extra: pip install "trigru[demo]"')
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        train_set, test_set = train_set.to(device), test_set.to(device)
        choose(args.schedule, device, torch.float32, BATCH_SIZE, HIDDEN_SIZE)
    except (RuntimeError, AssertionError) as error:  # torch built without the device raises an AssertionError
        return _failed(str(error))

    torch.manual_seed(args.seed)
    model = Classifier(CHANNELS, HIDDEN_SIZE, SPEAKERS, variant=args.variant, schedule=args.schedule).to(device)
    sequences, lengths = len(train_set.sequences), sorted(len(sequence) for sequence in train_set.sequences)
    print(f"JapaneseVowels: {sequences} sequences of {lengths[0]} to {lengths[-1]} steps to train on, ", end="")
    print(f"{len(test_set.sequences)} held out, {SPEAKERS} speakers")
    print(f"{model.gru}, {sum(p.numel() for p in model.parameters())} parameters with the classifier")
    print(explain(model.gru, train_set.packed(range(BATCH_SIZE))), flush=True)

    history = History()
    start = time.perf_counter()
    epochs = train(model, train_set, test_set, epochs=args.epochs, batch_size=BATCH_SIZE, seed=args.seed)
    threads = one_thread() if device.type == "cpu" else contextlib.nullcontext()
    with threads, tqdm(epochs, total=args.epochs, unit="epoch") as progress:
        for epoch in progress:
            history.append(epoch)
            progress.set_postfix_str(f"loss {epoch.loss:.4f}, held-out accuracy {epoch.test_accuracy:.2%}")
    seconds = time.perf_counter() - start
    print(f"held-out accuracy {history[-1].test_accuracy:.2%} after {args.epochs} epochs, {seconds:.1f} s")

    errors = gradient_errors(model.gru, test_set.packed(range(BATCH_SIZE)))
    allowed = tolerance(device)
    print(f"gradients against the float64 reference, ||error|| / ||reference||, at most {allowed:g} allowed:")
    for name, relative in errors.items():
        print(f"  {name:22}{relative:.1e}{'' if relative <= allowed else '  WRONG'}")

    out = args.out / "demo.png" if args.out.is_dir() else args.out
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(model, history, test_set, out)
    print(f"figure: {out}")
    if not all(relative <= allowed for relative in errors.values()):  # a NaN is wrong too
        return _failed("gradients differ from the reference")
    return 0


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _failed(message: str) -> int:
    print(f"trigru demo: {message}", file=sys.stderr)
    return 1
