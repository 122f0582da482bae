"""The cases of each suite, the telling ones first, for a run may end before the last.

A full product of the axes would take days, so the sizes of a grid are those of a star: a base case, and each axis
varied alone through it; for the heat map, hidden_size by batch; and shapes as people run them, away from the star.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from trigru.reference import VARIANTS

from .case import Case

SIZES = ("tiny", "quick", "full", "short")
DTYPES = ("bf16", "tf32", "fp16", "fp32")
HIDDEN_SIZES = (512, 64, 128, 256, 1024, 2048, 100, 200, 768)
BATCHES = (64, 1, 8, 16, 32, 128, 512)
SEQ_LENS = (1024, 64, 256, 4096)
BASE = (512, 64, 1024)
HEAT_HIDDEN_SIZES, HEAT_BATCHES, HEAT_SEQ_LEN = (64, 128, 256, 512, 1024, 2048), (1, 16, 64, 128, 512), 256
AWAY: tuple[dict[str, Any], ...] = (
    *({"hidden_size": size, "batch": 64, "seq_len": 256} for size in (4, 8, 16, 32)),
    {"hidden_size": 4, "batch": 4096, "seq_len": 33, "features": 8, "bidirectional": True},
    {"hidden_size": 64, "batch": 1024, "seq_len": 60, "features": 6, "num_layers": 2},
    {"hidden_size": 128, "batch": 2048, "seq_len": 50, "features": 64},
    {"hidden_size": 64, "batch": 2560, "seq_len": 10},
    {"hidden_size": 200, "batch": 128, "seq_len": 72, "features": 1, "num_layers": 2},
    {"hidden_size": 512, "batch": 64, "seq_len": 64, "features": 4096},
    {"hidden_size": 256, "batch": 12, "seq_len": 1000, "features": 768, "num_layers": 2, "bidirectional": True},
    {"hidden_size": 256, "batch": 64, "seq_len": 300, "num_layers": 5},
    {"hidden_size": 512, "batch": 240, "seq_len": 1, "cell": True},
    {"hidden_size": 128, "batch": 512, "seq_len": 1, "cell": True},
    {"hidden_size": 128, "batch": 16, "seq_len": 10000, "features": 10},
    {"hidden_size": 32, "batch": 4, "seq_len": 17984},
)
"""Small hidden sizes, large batches, inputs of another size, layers and directions, single steps, long sequences."""
FEW = (128, 512, 1024)  # hidden sizes of the dtypes and variants that are not the base's
PEERS_AT = {"bf16": (128, 512), "tf32": (128, 512), "fp16": (512,), "fp32": (512,)}  # hidden sizes, for all peers


@dataclass(frozen=True)
class Choice:
    """What the user asked for; None: what the suite has."""

    device: str
    size: str = "full"
    dtypes: Sequence[str] | None = None
    variants: Sequence[str] | None = None
    hidden_sizes: Sequence[int] | None = None
    batches: Sequence[int] | None = None
    seq_lens: Sequence[int] | None = None
    schedule: str = "auto"
    memory: str = "keep"


def cases(suite: str, choice: Choice) -> list[Case]:
    """The cases of "layer", "step", "module" or "cpu", each once."""
    made = {"layer": _layer, "step": _step, "module": _module, "cpu": _cpu}[suite](choice)
    return list(dict.fromkeys(replace(case, schedule=choice.schedule, memory=choice.memory) for case in made))


def _sized(choice: Choice, hidden_sizes: Iterable[int], batches: Iterable[int], seq_lens: Iterable[int]) -> Iterator:
    """The product of the sizes that were asked for, else of these; as (T, B, H), shorter ones first."""
    return product(choice.seq_lens or seq_lens, choice.batches or batches, choice.hidden_sizes or hidden_sizes)


def _asked(choice: Choice) -> bool:
    return bool(choice.hidden_sizes or choice.batches or choice.seq_lens)


def _cpu(choice: Choice) -> Iterator[Case]:
    """Training on a CPU."""
    hidden_sizes, batches, seq_lens = {
        "tiny": ((16,), (2,), (12,)),
        "quick": ((32, 128, 512), (1, 32), (32, 256)),
        "full": ((32, 128, 512), (1, 8, 32, 64), (32, 64, 256, 1024)),
        "short": ((32, 128, 512), (1, 8, 64), (2, 8, 16, 64)),
    }[choice.size]
    numbers = choice.dtypes or ("fp32",)
    variants = choice.variants or (VARIANTS[:1] if choice.size == "quick" else VARIANTS)
    for seq_len, batch, hidden_size in _sized(choice, hidden_sizes, batches, seq_lens):
        for variant, dtype in product(variants, numbers):  # a run that ends early has all of them
            yield Case("cpu", choice.device, dtype, variant, hidden_size, batch, seq_len)


def _layer(choice: Choice) -> Iterator[Case]:
    """One layer in one direction, padded and packed; then layers as people have them."""
    variants, dtypes = choice.variants or VARIANTS, choice.dtypes or (DTYPES if choice.device == "cuda" else ("fp32",))
    if choice.size == "tiny" or _asked(choice):
        for dtype, variant in product(dtypes, variants):
            for seq_len, batch, hidden_size in _sized(choice, (16,), (2,), (12,)):
                case = Case("layer", choice.device, dtype, variant, hidden_size, batch, seq_len)
                yield case
                if choice.size == "tiny":
                    yield replace(case, packed=True)
        return
    if choice.device == "cpu":  # the star is a GPU's; a CPU's grid is that of the suite of its own
        yield from (replace(case, suite="layer") for case in _cpu(choice))
        if choice.size == "full":
            yield from _away(choice, dtypes[0], variants[0])
        return
    hidden_size, batch, seq_len = BASE
    if choice.size in ("quick", "short"):
        start = Case("layer", choice.device, dtypes[0], variants[0], hidden_size, batch, HEAT_SEQ_LEN)
        yield from (replace(start, dtype=dtype) for dtype in dtypes[:2])
        yield from (start, replace(start, packed=True), replace(start, hidden_size=128))
        yield from (replace(start, variant=variant) for variant in variants[:2])
        return
    base = Case("layer", choice.device, dtypes[0], variants[0], hidden_size, batch, seq_len)
    yield base
    for dtype in dtypes[:2]:  # the star
        start = replace(base, dtype=dtype)
        yield from (replace(start, hidden_size=size) for size in HIDDEN_SIZES)
        yield from (replace(start, batch=size) for size in BATCHES)
        yield from (replace(start, seq_len=size) for size in SEQ_LENS)
        yield from (replace(start, batch=16, seq_len=256, packed=True, hidden_size=size) for size in FEW)
        yield replace(start, packed=True)
    short = replace(base, seq_len=HEAT_SEQ_LEN)
    for dtype in dtypes:  # other numbers, and every peer
        yield from (replace(short, dtype=dtype, hidden_size=size) for size in FEW)
    for dtype, variant in product(dtypes[:2], variants[1:]):  # other equations
        sizes = FEW if variant == variants[1] else (hidden_size,)
        yield from (replace(short, dtype=dtype, variant=variant, hidden_size=size) for size in sizes)
    # In TF32, which most people train in; for every dtype a run would take too long.
    yield from _away(choice, "tf32" if "tf32" in dtypes else dtypes[0], variants[0])
    for size, batch in product(HEAT_HIDDEN_SIZES, HEAT_BATCHES):  # the heat map
        yield replace(base, hidden_size=size, batch=batch, seq_len=HEAT_SEQ_LEN)


def _away(choice: Choice, dtype: str, variant: str) -> Iterator[Case]:
    for sizes in AWAY:
        yield Case("layer", choice.device, dtype, variant, **sizes)


def _step(choice: Choice) -> Iterator[Case]:
    """One step of a cell, as in acting or decoding."""
    hidden_sizes, batches = {
        "tiny": ((16,), (2,)),
        "quick": ((128, 512), (1, 64)),
    }.get(choice.size, ((128, 512), (1, 16, 256)))
    dtypes = choice.dtypes or (("bf16", "tf32") if choice.device == "cuda" else ("fp32",))
    for variant, dtype in product(choice.variants or VARIANTS[:2], dtypes):
        for _, batch, hidden_size in _sized(choice, hidden_sizes, batches, (1,)):
            yield Case("step", choice.device, dtype, variant, hidden_size, batch, 1, cell=True)


def _module(choice: Choice) -> Iterator[Case]:
    """Stacks of layers as models have them: deep; both directions; both directions of packed sequences."""
    hidden_sizes, batches, seq_lens = {
        "tiny": ((16,), (2,), (12,)),
        "quick": ((128,), (16,), (64,)),
    }.get(choice.size, ((256, 512), (32,), (256,)) if choice.device == "cuda" else ((128, 256), (16,), (128,)))
    dtypes = choice.dtypes or (("bf16", "tf32") if choice.device == "cuda" else ("fp32",))
    for variant, dtype in product(choice.variants or VARIANTS[:1], dtypes):
        for seq_len, batch, hidden_size in _sized(choice, hidden_sizes, batches, seq_lens):
            case = Case("module", choice.device, dtype, variant, hidden_size, batch, seq_len, num_layers=2)
            yield case
            yield replace(case, bidirectional=True)
            yield replace(case, bidirectional=True, packed=True)


def with_all_peers(case: Case) -> bool:
    """Whether peers beside nn.GRU are compared too: where they might run, and not so often that a run takes hours."""
    if case.device != "cuda" or case.suite != "layer" or case.packed or case.variant != "torch":
        return False
    at = (case.batch, case.seq_len) == (BASE[1], HEAT_SEQ_LEN)
    return at and case.hidden_size in PEERS_AT[case.dtype]
