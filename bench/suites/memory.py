"""Suite "memory": what forward keeps for backward, in bytes, and the peak of a training step, against nn.GRU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..cases.case import Case, random_inputs, source_of_weights
from ..cases.grid import Choice
from ..measuring.conditions import multiplied_in
from ..measuring.side import Side, ours
from ..peers import torch_gru
from ..schedules import schedule_of

SIZES = {"tiny": [(16, 2, 12)], "quick": [(128, 16, 64)], "full": [(128, 16, 256), (512, 64, 256), (1024, 64, 1024)]}


def cases(choice: Choice) -> Iterator[Case]:
    """Each size with gates kept and with gates computed again."""
    on_gpu = choice.device == "cuda"
    sizes = SIZES.get(choice.size, SIZES["full"])[: None if on_gpu else 2]
    for dtype in choice.dtypes or (("bf16", "tf32") if on_gpu else ("fp32",)):
        for variant in choice.variants or ("torch", "cho"):
            for hidden_size, batch, seq_len in sizes:
                case = Case("memory", choice.device, dtype, variant, hidden_size, batch, seq_len)
                yield from (replace(case, memory=memory, schedule=choice.schedule) for memory in ("keep", "recompute"))


def kept_bytes(side: Side) -> int:
    """Bytes of the memory that autograd holds after forward: every piece once, without inputs and parameters."""
    given = {leaf.untyped_storage().data_ptr() for leaf in side.leaves}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = side.call()
    held[out.untyped_storage().data_ptr()] = out.untyped_storage().nbytes()  # alive, whether backward needs it or not
    return sum(held.values())


def peak_bytes(side: Side) -> int | None:
    """The most memory that a training step has beyond what was there before it; None on a CPU."""
    if not side.leaves[0].is_cuda:
        return None
    train = side.timed("forward+backward")
    train()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def row(case: Case) -> dict[str, Any]:
    """Both sides' bytes; `ratio` is nn.GRU's kept bytes by ours."""
    with multiplied_in(case.precision):
        source, inputs = source_of_weights(case), random_inputs(case)
        found: dict[str, Any] = {}
        for name, build in (("ours", ours), ("peer", torch_gru.side)):
            side = build(case, source, inputs)
            found |= {f"{name}_kept_bytes": kept_bytes(side), f"{name}_peak_bytes": peak_bytes(side)}
            del side
        named = {**case.fields(), "schedule": schedule_of(case), "peer": torch_gru.PEER.name}
    return {**named, **found, "ratio": found["peer_kept_bytes"] / found["ours_kept_bytes"]}
