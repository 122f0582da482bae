"""Tile sizes and launch options of a schedule: small frozen records that a caller can pass, print and override."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

Protocol = Literal["data", "flags"]
"""How programs learn that a value is there, see exchange.py."""

FRAGMENT_TRITON = ((3, 5), (3, 10))
"""Triton versions, from the first up to, not with, the second, whose layouts exchange.py's waiting threads were tried
with. At another layout their assembly traps; with another version programs wait as a whole."""


FETCHING_TRITON = ((3, 7), (3, 8))
"""Those with which columns of W_hh were fetched (see fetched.py), and programs took several batch tiles (see
several.py): older ones compile neither, later ones have another layout."""


@functools.cache
def triton_version() -> tuple[int, int]:
    """Major and minor number of the installed Triton; (0, 0) without one."""
    try:
        found = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        found = None
    return (int(found[1]), int(found[2])) if found else (0, 0)


def waits_by_thread() -> bool:
    """Whether the installed Triton is one of FRAGMENT_TRITON. Without any, yes: plans are then for such a one."""
    first, end = FRAGMENT_TRITON
    version = triton_version()
    return first <= version < end or (version == (0, 0) and importlib.util.find_spec("triton") is None)


def fetches() -> bool:
    """Whether the installed Triton is one of FETCHING_TRITON. Without any, yes."""
    return triton_version() == (0, 0) or FETCHING_TRITON[0] <= triton_version() < FETCHING_TRITON[1]


def words_of_a_lane() -> int:
    """Consecutive words of 4 bytes that a lane holds of an operand joined from two tensors."""
    return 2 if triton_version() < (3, 8) else 1


def one_use_of_a_fragment() -> bool:
    """Whether a product that shares its awaited operand with another makes Triton bring that operand's elements through
    shared memory, where they are no longer those that a thread waited for."""
    return triton_version() == (3, 8)


def kept_values(variant: str) -> int:
    """Values of each hidden unit that forward keeps beside its state: r, z, n, for "torch" W_hn h + b_hn too."""
    return 4 if variant == "torch" else 3


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and at least 16, the least side of a matrix product's tile."""
    return max(16, 1 << (n - 1).bit_length())


@dataclass(frozen=True)
class StepwiseConfig:
    """A launch's tile is BLOCK_H hidden units by BLOCK_B sequences; the product runs in chunks of BLOCK_K."""

    block_h: int = 32
    block_b: int = 16
    block_k: int = 64
    num_warps: int = 4
    num_stages: int = 3

    def grid(self, hidden_size: int, batch: int) -> tuple[int, int]:
        """Number of programs along hidden units and sequences."""
        return cdiv(hidden_size, self.block_h), cdiv(batch, self.block_b)

    def constexprs(self) -> dict[str, int]:
        """The compile-time arguments that the configuration fixes."""
        return {"BLOCK_H": self.block_h, "BLOCK_B": self.block_b, "BLOCK_K": self.block_k}


def on_matrix_units(dtype: torch.dtype, precision: str, capability: tuple[int, int] | None) -> bool:
    """Whether Triton multiplies such numbers on matrix units; where not, products take more registers.

    capability: of an NVIDIA GPU; None for AMD's, whose units take float32 too. Triton no longer uses those of GPUs
    older than 8.0."""
    return capability is None or (capability >= (8, 0) and (dtype.itemsize == 2 or precision == "tf32"))


def stepwise_config(dtype: torch.dtype, batch: int, hidden_size: int, matrix: bool = True) -> StepwiseConfig:
    """Tile sizes of the stepwise schedule, for tensors of `dtype`; `matrix`: see `on_matrix_units`.

    A small batch takes narrow tiles, so that more multiprocessors share a step; a large one wider tiles, so that each
    weight loaded from L2 meets more sequences."""
    aligned = hidden_size % 16 == 0  # other rows pass through registers on their way, and chunks of 64 spilled
    emulated = dtype.itemsize == 2 and not matrix
    block_b = 16 if batch <= 16 or (emulated and not aligned) else 32
    block_k = 32 if hidden_size <= 32 or dtype.itemsize > 2 or emulated or not aligned else 64
    exact = dtype.itemsize > 2 and not matrix
    wide = block_b > 16
    if hidden_size <= 16 or (wide and (dtype.itemsize > 2 or not aligned)) or (exact and not aligned):
        block_k = 16  # chunks of 32 of exact float32 products take all 255 registers, and spilled
    many = exact and hidden_size > 16 if wide else exact or emulated  # registers
    num_warps = 8 if many and not aligned else 4
    return StepwiseConfig(16 if hidden_size <= 16 else 32, block_b, block_k, num_warps)


@dataclass(frozen=True)
class WalkingConfig(StepwiseConfig):
    """As the stepwise schedule's, with at most so many programs (None: one for each tile), for all must be on the
    device together. `timeout`: as in PersistentConfig."""

    programs: int | None = None
    timeout: float | None = None

    def shared_bytes(self, dtype: torch.dtype) -> int:
        """The most shared memory that a program takes: chunks of three gates' weights and of what they multiply."""
        return self.num_stages * 3 * (self.block_h + self.block_b) * self.block_k * dtype.itemsize

    def on_a_multiprocessor(self, dtype: torch.dtype, shared_per_block: int) -> int:
        """Programs that fit on a multiprocessor, by registers as in PersistentConfig, and by shared memory."""
        by_registers = 65536 // (256 * 32 * self.num_warps)
        return max(1, min(by_registers, shared_per_block // self.shared_bytes(dtype)))


def walking_config(dtype: torch.dtype, batch: int, hidden_size: int, matrix: bool = True) -> WalkingConfig:
    """Tile sizes of the walking schedule: those of the stepwise one, but in shorter chunks, or for more warps, where
    what a program carries from step to step left too few registers."""
    config, aligned = stepwise_config(dtype, batch, hidden_size, matrix), hidden_size % 16 == 0
    if dtype.itemsize > 2 and not matrix:
        config = replace(config, block_b=16, block_k=16, num_warps=8, num_stages=2 if aligned else 1)
    elif dtype.itemsize > 2:
        block_b = config.block_b if aligned else 16
        config = replace(config, block_b=block_b, block_k=16, num_warps=4 if block_b == 16 else 8)
    else:
        block_k = 32 if hidden_size > 16 and (matrix or aligned) else 16
        config = replace(config, block_k=block_k, num_warps=4 if config.block_b == 16 else 8)
    return WalkingConfig(**asdict(config))


@dataclass(frozen=True)
class ResidentConfig:
    """A program runs all hidden units of BLOCK_B sequences."""

    block_b: int = 16
    num_warps: int = 4
    num_stages: int = 1

    @staticmethod
    def largest(dtype: torch.dtype, precision: str, matrix: bool = True) -> int:
        """The largest hidden_size at which its kernels were compiled without a spilled register; `matrix`: see
        `on_matrix_units`."""
        if dtype == torch.float32:
            return 64
        return 128 if matrix else 32

    def shared_bytes(self, dtype: torch.dtype, hidden_size: int) -> int:
        """Shared memory of a program: the weights, and the tiles on their way into products (read from binaries)."""
        hidden = power_of_two(hidden_size)
        return (3 * hidden * hidden + 4 * hidden * self.block_b) * dtype.itemsize

    def programs(self, batch: int) -> int:
        """Number of programs."""
        return cdiv(batch, self.block_b)


def resident_config(dtype: torch.dtype, batch: int, hidden_size: int) -> ResidentConfig:
    """Tile sizes of the resident schedule: enough warps that no accumulator spills."""
    return ResidentConfig(16, 8 if power_of_two(hidden_size) > 64 or dtype.itemsize > 2 else 4)


@dataclass(frozen=True)
class PersistentConfig:
    """A program keeps BLOCK_H hidden units of every gate for BLOCK_B sequences, the inner dimension split over its
    warps. A launch has at most `tiles_at_once` batch tiles (None: all), a tile counted twice where both directions run,
    because all its programs must be on the device together; others follow in launches of their own. `protocol`: how
    programs learn that a value is there, "data" or "flags" (see exchange.py). `timeout`: seconds after
    which a wait gives up; None: those of `exchange.default_timeout`. `registers`: the most that a thread takes.
    `layers`: at most so many run in one launch (see stacked.py), where a tile counts as often. `tiles`: so many batch
    tiles a program takes within a step, one after the other; `tiles_at_once` counts them as one. `fetched`: of the
    pieces that the columns of W_hh are cut into, so many do not stay in registers (see fetched.py)."""

    block_h: int = 16
    block_b: int = 16
    num_warps: int = 8
    registers: int = 256
    tiles_at_once: int | None = None
    protocol: Protocol = "data"
    timeout: float | None = None
    layers: int = 1
    tiles: int = 1
    fetched: int = 0

    @staticmethod
    def largest(dtype: torch.dtype, precision: str, matrix: bool = True) -> int:
        """The largest hidden_size at which its kernels were compiled without a spilled register; waiting as a whole
        takes more of them (see exchange.py). 0: none, exact float32 products do not fit, nor any without matrix
        units."""
        if not matrix or (dtype == torch.float32 and precision != "tf32"):
            return 0
        if not waits_by_thread():
            return 255
        return PersistentConfig.in_registers(dtype) * (2 if fetches() else 1)

    @staticmethod
    def in_registers(dtype: torch.dtype) -> int:
        """The largest hidden_size at which no columns are fetched."""
        return 2048 // dtype.itemsize

    def grid(self, hidden_size: int, batch: int) -> tuple[int, int]:
        """Number of programs along hidden units and sequences; those along hidden units must be on the device
        together."""
        return cdiv(hidden_size, self.block_h), cdiv(batch, self.block_b * self.tiles)

    @property
    def on_a_multiprocessor(self) -> int:
        """Programs that fit on a multiprocessor, which has 65,536 registers (on every GPU since 8.0): the launch asks
        the assembler for no more. Their shared memory is at most 4 KiB a warp."""
        return max(1, 65536 // (self.registers * 32 * self.num_warps))

    def depth(self, hidden_size: int, dtype: torch.dtype) -> int:
        """Columns of W_hh that a warp multiplies: a power of two, and whole groups of four chunks of 16 bytes."""
        depth = 64 // dtype.itemsize
        while depth * self.num_warps < hidden_size and not self.fetched:
            depth *= 2
        return depth

    def constexprs(self, hidden_size: int, dtype: torch.dtype) -> dict[str, int]:
        """The compile-time arguments that the configuration fixes."""
        depth = self.depth(hidden_size, dtype)
        return {"SPLIT": self.num_warps, "DEPTH": depth, "BLOCK_H": self.block_h, "BLOCK_B": self.block_b}

    def piece(self, dtype: torch.dtype) -> int:
        """Columns of a piece, where some are fetched."""
        return self.num_warps * (64 // dtype.itemsize)

    def l1_bytes(self, dtype: torch.dtype) -> int:
        """What a program wants to find in the L1 cache in every step, with what it has of the same memory as shared
        memory: at most 4 KiB a warp, of wide programs 2 (read from binaries)."""
        columns, shared = self.fetched * self.piece(dtype), 2048 if self.block_h == WIDE else 4096
        return 3 * self.block_h * columns * dtype.itemsize + shared * self.num_warps


def persistent_width(dtype: torch.dtype, hidden_size: int) -> int:
    """The hidden_size that the persistent kernels run, with units of zeros added (see widen.py): rows of whole chunks
    of 16 bytes, which a thread can wait for; of whole warps' parts where those have 128 columns, for masks
    within it spilled; of whole pieces where some are fetched."""
    multiple = 128 if dtype.itemsize == 2 and hidden_size > 512 else 16 // dtype.itemsize
    if hidden_size > PersistentConfig.in_registers(dtype):
        multiple = PersistentConfig().piece(dtype)
    return cdiv(hidden_size, multiple) * multiple


KEPT_PIECES = 3
WIDE = 32  # hidden units of a program of `wide_config`


def persistent_config(dtype: torch.dtype, batch: int, hidden_size: int) -> PersistentConfig:
    """Tile sizes of the persistent schedule.

    Eight sequences a tile, the least that a matrix instruction multiplies, where there are no more: half the bytes to
    look at and to sum; a plan may take them for more, where each program has a multiprocessor. For larger batches 16
    (32 would take a step 1.6 to 1.8 times as long by a model of the machine code, and registers that two programs of a
    multiprocessor share).

    As many warps, up to 8, as W_hh has groups of columns for, or for the smaller tile half as many, so that its every
    thread has an element of its own; always 8 with a Triton with which only 8 warps can wait thread by thread.

    Up to eight groups 8 warps were compiled without a spill into half of the registers, and two programs fit on a
    multiprocessor. Where registers cannot hold all columns, they hold KEPT_PIECES pieces."""
    block_b = 8 if batch <= 8 else 16
    if hidden_size > PersistentConfig.in_registers(dtype):
        config = PersistentConfig(block_b=block_b)
        return replace(config, fetched=persistent_width(dtype, hidden_size) // config.piece(dtype) - KEPT_PIECES)
    if words_of_a_lane() == 1:
        return PersistentConfig(block_b=block_b)
    groups = cdiv(hidden_size, 64 // dtype.itemsize)
    fours = 8 if block_b == 8 else 4  # groups that four warps take
    warps = 2 if groups <= 2 else 4 if groups <= fours else 8
    return PersistentConfig(block_b=block_b, num_warps=warps, registers=128 if warps == 8 and groups <= 8 else 256)


def why_one_tile(
    variant: str, direction: str, dtype: torch.dtype, hidden_size: int, capability: tuple[int, int]
) -> str | None:
    """Why no program takes several batch tiles of such a layer on a GPU of that compute capability, or None."""
    if not fetches():
        return "before 3.7 Triton does not compile several, and looks ahead trap at the layout that it has since 3.8"
    going_back = variant != "torch" and direction == "backward" and dtype.itemsize == 2
    if going_back and 896 < hidden_size <= 1024 and capability >= (10, 0):
        return f"going back, {variant!r} spills registers at hidden_size 1024"  # both directions, packed: 8 bytes
    return None


def sharing_config(
    config: PersistentConfig, variant: str, direction: str, dtype: torch.dtype, hidden_size: int
) -> PersistentConfig | None:
    """`persistent_config`'s or `wide_config`'s for half of a multiprocessor's registers; None where that spills, or
    theirs is such a one already. Of the usual programs those of forward of "torch", by half of the warps, which have
    half of the parts to sum: where each multiplies 128 columns in 16 bits, all or none of which exist, or 64 in TF32
    that all do. Of wide ones, by half of the registers, those with half as many columns a warp, but where "cho" and
    "chung" go back, if they take several batch tiles."""
    forward, half = direction == "forward", PersistentConfig.in_registers(dtype) // 2
    if config.block_b != 16 or config.num_warps != 8:
        return None
    if config.block_h == WIDE:
        fits = 2 * hidden_size <= half and (variant == "torch" or forward) and _fills_warps(config, dtype, hidden_size)
        return replace(config, registers=128) if fits else None
    whole = hidden_size in (half, 3 * half // 4) if dtype.itemsize == 2 else hidden_size == half
    fits = variant == "torch" and forward and whole
    return replace(config, num_warps=4) if fits and waits_by_thread() and words_of_a_lane() == 2 else None


def wide_config(
    config: PersistentConfig, variant: str, direction: str, dtype: torch.dtype, hidden_size: int
) -> PersistentConfig | None:
    """`persistent_config`'s with twice the hidden units for a program, so that half as many read what those of a batch
    tile exchange. Above half of the largest hidden_size whose columns registers hold, they hold two pieces of three, or
    one of four. None where it spills, for masks of units that do not exist, or wins nothing: forward of "torch" with
    one piece, or where two of the usual programs share a multiprocessor; and where units are added."""
    largest, each = PersistentConfig.in_registers(dtype), config.piece(dtype)
    in_one_product = (variant, direction) == ("torch", "forward")
    wide, pieces = replace(config, block_h=WIDE, registers=256), hidden_size // each
    if config.num_warps != 8 or config.block_b != 16 or not waits_by_thread():
        return None
    if persistent_width(dtype, hidden_size) != hidden_size:
        return None
    if in_one_product and (
        one_use_of_a_fragment() or sharing_config(config, variant, direction, dtype, hidden_size) is not None
    ):
        return None
    if 2 * hidden_size <= largest:
        return wide if hidden_size % WIDE == 0 else None
    fits = fetches() and hidden_size <= largest and hidden_size % each == 0 and not (in_one_product and pieces == 4)
    return replace(wide, fetched=1 if pieces == 3 else 3) if fits else None


def stacked_config(dtype: torch.dtype, batch: int, hidden_size: int) -> PersistentConfig:
    """Tile sizes of a launch that runs several layers: those of one layer, with all registers, for W_ih is kept too;
    where warps have columns that do not exist, all 8 warps, with which the masks fit."""
    config = replace(persistent_config(dtype, batch, hidden_size), registers=256)
    return config if _fills_warps(config, dtype, hidden_size) else replace(config, num_warps=8)


def _fills_warps(config: PersistentConfig, dtype: torch.dtype, hidden_size: int) -> bool:
    return config.depth(hidden_size, dtype) * config.num_warps == hidden_size


def why_not_stacked(variant: str, dtype: torch.dtype, hidden_size: int, precision: str) -> str | None:
    """Why no launch runs several layers of such a size, or None."""
    if dtype == torch.float32 and precision != "tf32":
        return "float32 without TF32 does not fit its registers"
    if not waits_by_thread() or (variant != "torch" and one_use_of_a_fragment()):
        return "this version of Triton has another layout of what programs wait for"
    if persistent_width(dtype, hidden_size) != hidden_size:
        return "it adds no hidden units"
    largest = 1024 // dtype.itemsize
    if hidden_size > largest:
        return f"its registers spill above hidden_size {largest}"
    if hidden_size > largest // 2 and not _fills_warps(PersistentConfig(), dtype, hidden_size):
        return f"between hidden_size {largest // 2} and {largest} its registers spill"
    return None


Config = StepwiseConfig | WalkingConfig | ResidentConfig | PersistentConfig
