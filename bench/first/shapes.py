"""What the first minutes measure, the telling ones first."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """A layer or a stack of layers, and its input. numbers: "bf16", "fp16", "tf32", "fp32"."""

    variant: str
    numbers: str
    input_size: int
    hidden_size: int
    batch: int
    steps: int
    layers: int = 1
    both: bool = False  # bidirectional


LAYERS = [
    Shape("torch", "bf16", 512, 512, 64, 1024),
    Shape("torch", "bf16", 768, 768, 16, 1024),
    Shape("torch", "tf32", 512, 512, 64, 512),
    Shape("torch", "bf16", 1024, 1024, 32, 256),
    Shape("torch", "tf32", 256, 256, 64, 512),
    Shape("torch", "bf16", 128, 128, 64, 256),
    Shape("cho", "bf16", 512, 512, 64, 256),
    Shape("torch", "tf32", 256, 256, 16, 500, 2, True),
    Shape("torch", "bf16", 768, 768, 64, 200, 5),
    Shape("torch", "bf16", 256, 256, 64, 512),
    Shape("torch", "bf16", 512, 512, 256, 256),
    Shape("torch", "tf32", 64, 64, 800, 60, 2),
    Shape("torch", "bf16", 2048, 2048, 64, 128),
    Shape("torch", "fp32", 256, 256, 64, 256),
    Shape("chung", "tf32", 256, 256, 64, 256),
    Shape("torch", "tf32", 64, 128, 2048, 50),
    Shape("torch", "fp32", 512, 512, 64, 256),
    Shape("torch", "bf16", 512, 512, 16, 1024),
    Shape("torch", "bf16", 1024, 1024, 64, 256),
]
LENGTHS = 1024, 2048  # of which the difference is so many steps
STEPS = [Shape("torch", "bf16", 16, h, 16, LENGTHS[0]) for h in (128, 256, 512, 768, 1024)]
STEPS += [Shape("torch", "tf32", 16, h, 16, LENGTHS[0]) for h in (256, 512)]
STEPS += [Shape("chung", "bf16", 16, 512, 16, LENGTHS[0]), Shape("torch", "bf16", 16, 512, 64, LENGTHS[0])]
PROTOCOLS = [Shape("torch", "bf16", 16, h, b, LENGTHS[0]) for h, b in ((512, 16), (1024, 32))]
SCHEDULES = [
    Shape("torch", "bf16", 512, 512, 64, 256),
    Shape("torch", "bf16", 128, 128, 64, 256),
    Shape("torch", "tf32", 512, 512, 64, 256),
    Shape("torch", "bf16", 1024, 1024, 16, 256),
    Shape("torch", "bf16", 512, 512, 16, 256),
    Shape("cho", "bf16", 512, 512, 64, 256),
    Shape("torch", "fp32", 256, 256, 64, 256),
    Shape("torch", "bf16", 2048, 2048, 64, 256),
]
ROUNDS = 1024, 2048  # of the ping-pong

# For a run that only shows that everything runs.
TINY_LAYERS = [Shape("torch", "bf16", 8, 16, 3, 6), Shape("cho", "tf32", 8, 16, 3, 4, 2, True)]
TINY_STEPS = [Shape("torch", "bf16", 16, 40, 3, 3)]
TINY_LENGTHS = 3, 6
TINY_ROUNDS = 4, 8
