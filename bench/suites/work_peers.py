"""Work of a step of gru-qat's dense persistent forward kernel, counted as that of trigru's persistent kernels.

Where gru-qat is not installed, the rows that were counted once (bench/results/work/peers.jsonl) stand for it. For every
tile size tried: its own default first.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trigru.kernels.config import cdiv

from . import work, work_persistent

STORED = Path(__file__).parents[1] / "results" / "work" / "peers.jsonl"
TILES = ((8, 128, 32), (16, 64, 32))  # BLOCK_B, BLOCK_OH, BLOCK_K
NUM_WARPS, NUM_STAGES = 4, 2  # its defaults
NO_LIMIT = (1.0, -(2**31), 2**31 - 1)  # scale, least and largest of a quantiser that is off


def rows(arch: int, sizes: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """A row for each size, (hidden_size, batch), and tile."""
    if importlib.util.find_spec("gru_qat") is not None:
        for hidden_size, batch in sizes:
            yield from (count(arch, hidden_size, batch, tile) for tile in TILES)
    elif STORED.exists():
        for line in STORED.read_text().splitlines():
            row = json.loads(line)
            if (row["hidden_size"], row["batch"]) in sizes and row["target"] == f"sm_{arch}":
                yield row


def count(arch: int, hidden_size: int, batch: int, tile: tuple[int, int, int]) -> dict[str, Any]:
    """Three steps less two, each run interleaved and then once more over what it left, so that nothing waits."""
    fewer, more = (_launch(arch, seq_len, hidden_size, batch, tile) for seq_len in work_persistent.LENGTHS)
    step = work_persistent.difference(fewer, more)
    block_b, block_oh, _ = tile
    load_floor, store_floor = work_persistent.floor("forward_torch", hidden_size, batch, 2, block_oh)
    return {
        "suite": "work",
        "target": f"sm_{arch}",
        "kernel": "gru_scan_fwd_persistent_kernel",
        "schedule": "gru-qat",
        "direction": "forward",
        "variant": "torch",
        "dtype": "bf16",
        "hidden_size": hidden_size,
        "batch": batch,
        "block_h": block_oh,
        "block_b": block_b,
        "num_warps": NUM_WARPS,
        "programs": more["programs"],
        "path": step["critical_path"],
        "instructions": step["instructions"],
        "barriers": step["barriers"],
        "atomics": step["atomics"],
        "load_bytes": step["global_load_bytes"],
        "load_floor": load_floor,
        "store_bytes": step["global_store_bytes"],
        "store_floor": store_floor,
        "peer": "floor",
        "ratio": load_floor / step["global_load_bytes"],
    }


def _launch(arch: int, seq_len: int, hidden_size: int, batch: int, tile: tuple[int, int, int]) -> dict[str, Any]:
    from gru_qat.triton_kernels.scan import gru_scan_fwd_persistent_kernel as kernel

    block_b, block_oh, block_k = tile
    grid = (cdiv(batch, block_b), cdiv(hidden_size, block_oh))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).bfloat16()

    args: dict[str, Any] = {
        "gi_ptr": random(seq_len, batch, 3 * hidden_size),
        "h0_ptr": random(batch, hidden_size),
        "Wh_ptr": random(3 * hidden_size, hidden_size) / hidden_size**0.5,
        "bh_ptr": random(3 * hidden_size),
        "out_ptr": random(seq_len, batch, hidden_size),
        "barrier_ptr": torch.zeros(seq_len, dtype=torch.int32),
        "T": seq_len,
        "B": batch,
        "sg_t": batch * 3 * hidden_size,
        "sg_b": 3 * hidden_size,
        "sh0_b": hidden_size,
        "sW_o": hidden_size,
        "so_t": batch * hidden_size,
        "so_b": hidden_size,
        "NUM_PROGRAMS": grid[0] * grid[1],
    }
    for name in ("h_in", "h_out"):
        args |= {f"{name}_{part}": x for part, x in zip(("scale", "qmin", "qmax"), NO_LIMIT, strict=True)}
    constexprs = {"H": hidden_size, "BLOCK_B": block_b, "BLOCK_OH": block_oh, "BLOCK_K": block_k}
    constexprs |= {"QUANT_H_IN": False, "QUANT_H_OUT": False}
    ptx = work._executor()
    options = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "cooperative": True}
    twice = (
        ptx.ptx_launcher(arch, checks=False, races=False, seed=0),
        ptx.ptx_launcher(arch, checks=False, races=False, sequential=True),
    )
    for launcher in twice:
        launcher(kernel, grid, args, constexprs, **options)
    return twice[1].launches[0]
