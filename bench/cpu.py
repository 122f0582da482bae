"""Training on a CPU, forward and backward, in pairs with nn.GRU of the same size.

    python -m trigru.bench.cpu [--quick | --short] [--no-grad] [--variant torch cho chung] [--threads 2] [--out DIR]

Both modules get the same inputs and are checked against the float64 reference first. Then they are timed in turns, one
call each a round, so that a disturbance meets both. A row's times are the 20th percentile over the rounds, its ratio is
nn.GRU's time by ours, and ratio_p20, ratio_p50, ratio_p80 are percentiles of the ratio of single rounds. nn.GRU has
only the equations of variant "torch"; for the others it is the peer of the same size.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import trigru
from trigru import reference
from trigru.reference import VARIANTS

BATCHES, HIDDEN_SIZES, SEQ_LENS = (1, 8, 32, 64), (32, 128, 512), (64, 256, 1024)
QUICK = (1, 16, 64), (32, 128, 512), (32, 256)
SHORT = (1, 8, 64), (32, 128, 512), (2, 8, 16, 64)
CHECKED_STEPS, TOLERANCE = 32, 1e-4
QUANTILES = (0.2, 0.5, 0.8)

Shape = tuple[int, int, int]


def train(module: nn.Module, x: Tensor, h0: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of input, state and parameters."""
    leaves = [x, h0, *module.parameters()]
    output = module(x, h0)[0]
    return (output, *torch.autograd.grad(output, leaves, grad))


class SpecifiedGRU(nn.Module):
    """The reference equations with another module's parameters, in float64."""

    def __init__(self, source: nn.Module, variant: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(p.detach().double()) for p in source.parameters()])
        self.variant = variant

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        """As nn.GRU."""
        return reference.gru(x, h0[0], *self.weights, variant=self.variant)


def check(module: nn.Module, variant: str, x: Tensor, h0: Tensor, grad: Tensor) -> None:
    """Raise RuntimeError unless output and gradients over the first steps agree with the float64 reference."""
    x, grad = x[:CHECKED_STEPS].detach().requires_grad_(), grad[:CHECKED_STEPS]
    double = (tensor.detach().double().requires_grad_() for tensor in (x, h0, grad))
    want = train(SpecifiedGRU(module, variant), *double)
    for got, exact in zip(train(module, x, h0, grad), want, strict=True):
        error = ((got - exact).norm() / exact.norm().clamp_min(1e-30)).item()
        if not error <= TOLERANCE:
            raise RuntimeError(f"{type(module).__module__}: {error:.1e} from the reference, {TOLERANCE:.0e} allowed")


def seconds(call: Callable[[], object]) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def pair(ours: Callable[[], object], peer: Callable[[], object], budget_s: float) -> list[tuple[float, float]]:
    """Durations of both, in turns, for about `budget_s` seconds, 3 to 60 rounds; a first round is not counted."""
    warm = seconds(ours) + seconds(peer)
    rounds = min(60, max(3, int(budget_s / warm)))
    return [(seconds(ours), seconds(peer)) for _ in range(rounds)]


def quantiles(values: Iterable[float]) -> list[float]:
    """The percentiles that a row reports."""
    return torch.tensor(list(values), dtype=torch.float64).quantile(torch.tensor(QUANTILES).double()).tolist()


def measure(variant: str, shape: Shape, budget_s: float, schedule: str, grad_too: bool) -> dict:
    """A row: what was measured and how long it took."""
    seq_len, batch, hidden_size = shape
    torch.manual_seed(0)
    peer = nn.GRU(hidden_size, hidden_size)
    ours = trigru.GRU(hidden_size, hidden_size, variant=variant, schedule=schedule)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(seq_len, batch, hidden_size, requires_grad=True)
    h0, grad = torch.randn(1, batch, hidden_size, requires_grad=True), torch.randn(seq_len, batch, hidden_size)
    check(peer, "torch", x, h0, grad)
    check(ours, variant, x, h0, grad)
    if grad_too:
        times = pair(lambda: train(ours, x, h0, grad), lambda: train(peer, x, h0, grad), budget_s)
    else:
        with torch.no_grad():
            times = pair(lambda: ours(x, h0), lambda: peer(x, h0), budget_s)
    ours_s, peer_s = (quantiles(column)[0] for column in zip(*times, strict=True))
    p20, p50, p80 = quantiles(b / a for a, b in times)
    return {
        "variant": variant,
        "schedule": schedule,
        "direction": "forward+backward" if grad_too else "forward",
        "hidden_size": hidden_size,
        "batch": batch,
        "seq_len": seq_len,
        "rounds": len(times),
        "ours_ms": ours_s * 1e3,
        "peer": "torch.nn.GRU",
        "peer_ms": peer_s * 1e3,
        "ratio": peer_s / ours_s,
        "ratio_p20": p20,
        "ratio_p50": p50,
        "ratio_p80": p80,
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str | None:
    """The checkout's commit, or None for an installed package."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def conditions() -> dict:
    """What every row of a run shares."""
    return {
        "suite": "cpu",
        "device": "cpu",
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "versions": {"trigru": trigru.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": commit(),
        "command": "python -m trigru.bench.cpu " + " ".join(sys.argv[1:]),
    }


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product."""
    return math.exp(sum(map(math.log, values)) / len(values))


def report(rows: Sequence[dict]) -> str:
    """A table: a line a variant."""
    lines = [f"{'variant':8} {'shapes':>6} {'geomean':>8} {'worst':>6}  at"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        worst = min(own, key=lambda row: row["ratio"])
        place = f"hidden_size {worst['hidden_size']}, batch {worst['batch']}, seq_len {worst['seq_len']}"
        mean = geometric_mean([row["ratio"] for row in own])
        lines.append(f"{variant:8} {len(own):6} {mean:8.2f} {worst['ratio']:6.2f}  {place}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trigru.bench.cpu", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="18 shapes a variant instead of 36")
    parser.add_argument("--short", action="store_true", help="short sequences: 36 shapes of 2 to 64 steps")
    parser.add_argument("--no-grad", action="store_true", help="forward alone, without gradients")
    parser.add_argument("--schedule", choices=("auto", "eager"), default="auto", help="(default: %(default)s)")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for the rounds of one row, about")
    parser.add_argument("--out", type=Path, help="folder for the rows, as one file of JSON lines")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    grid = SHORT if options.short else QUICK if options.quick else (BATCHES, HIDDEN_SIZES, SEQ_LENS)
    batches, hidden_sizes, seq_lens = grid
    shared, rows = conditions(), []
    file = None
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / f"cpu-{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S}.jsonl"
    for variant, *shape in tqdm(list(product(options.variant, seq_lens, batches, hidden_sizes)), unit="shape"):
        rows.append(
            {
                **shared,
                **measure(
                    variant, (shape[0], shape[1], shape[2]), options.seconds, options.schedule, not options.no_grad
                ),
            }
        )
        if file:
            with file.open("a") as out:
                out.write(json.dumps(rows[-1]) + "\n")
    print(report(rows))


if __name__ == "__main__":
    main()
