"""Tile sizes and launch options of a schedule: small frozen records that a caller can pass, print and override."""

from __future__ import annotations

from dataclasses import dataclass


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


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


@dataclass(frozen=True)
class PersistentConfig:
    """A program keeps BLOCK_H hidden units of every gate for BLOCK_B sequences, the inner dimension split over its warps."""

    block_h: int = 16
    block_b: int = 16
    num_warps: int = 8

    def grid(self, hidden_size: int, batch: int) -> tuple[int, int]:
        """Number of programs along hidden units and sequences; all of them must be on the device together."""
        return cdiv(hidden_size, self.block_h), cdiv(batch, self.block_b)

    def depth(self, hidden_size: int, element_bits: int) -> int:
        """Columns of W_hh that a warp multiplies: a power of two, and whole groups of four chunks of 16 bytes."""
        depth = 512 // element_bits
        while depth * self.num_warps < hidden_size:
            depth *= 2
        return depth

    def constexprs(self, hidden_size: int, element_bits: int) -> dict[str, int]:
        """The compile-time arguments that the configuration fixes."""
        depth = self.depth(hidden_size, element_bits)
        return {"SPLIT": self.num_warps, "DEPTH": depth, "BLOCK_H": self.block_h, "BLOCK_B": self.block_b}


def persistent_config(hidden_size: int, element_bits: int) -> PersistentConfig:
    """The configuration to use: as many warps, up to 8, as W_hh has groups of columns for."""
    groups = cdiv(hidden_size, 512 // element_bits)
    return PersistentConfig(num_warps=2 if groups <= 2 else 4 if groups <= 4 else 8)
