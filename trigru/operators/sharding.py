"""DTensors that are split over the batch, each process running its own sequences: for torch.distributed.tensor.

DTensor's own rules (a strategy an operator, register_sharding) have no place for a list among several results, so both
operators say themselves what runs in each process and how the results are placed. Sequences do not meet in a GRU: only
the weights' gradients are summed over the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..layer import differentiable
from .schema import Backward, Recorded, flat, flat_backward, recorded, recorded_backward

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement

_WAY_OUT = "or call the module on local tensors (to_local), or wrap it in DistributedDataParallel or fully_shard"


def register(library: torch.library.Library, module: ModuleType) -> None:
    """With torch.distributed.tensor."""
    for name, rule in (("gru", _forward), ("gru_backward", _backward)):
        torch.library.register_torch_dispatch(f"trigru::{name}", module.DTensor, partial(rule, module), lib=library)


class _Batch:
    """How a call's batch lies on a mesh of processes. Raises RuntimeError for tensors that lie otherwise."""

    def __init__(self, module: ModuleType, call: Recorded) -> None:
        self.module = module
        named = {"input": call.call.input, "hx": call.call.hx}
        named |= {f"weights[{i}]": weight for i, weight in enumerate(call.weights)}
        if call.call.gain is not None:
            named["gain"] = call.call.gain
        for name, x in named.items():
            if not isinstance(x, module.DTensor):
                raise RuntimeError(
                    f"trigru: {name}: got a torch.Tensor beside a DTensor; make all of them DTensors, {_WAY_OUT}"
                )
        if present := call.call.given.present:
            raise RuntimeError(
                f"trigru: {', '.join(present)}: no DTensor rule for what a call gives each step; {_WAY_OUT}"
            )
        given = cast("dict[str, DTensor]", named)
        self.mesh = given["input"].device_mesh
        self.dim = 0 if call.layer.batch_first else 1
        replicated = module.Replicate()
        split = [] if call.call.batch_sizes is not None else [module.Shard(self.dim)]
        for name, x in given.items():
            allowed = None if name == "hx" else [replicated, *split] if name == "input" else [replicated]
            if allowed is not None and not all(placement in allowed for placement in x.placements):
                raise RuntimeError(
                    f"trigru: {name}: expected a DTensor placed as one of {allowed}, got {x.placements}; "
                    f"redistribute it, {_WAY_OUT}"
                )
        self.is_split = [placement.is_shard() for placement in given["input"].placements]

    def placed(self, where_split: Placement) -> list[Placement]:
        """Placements: so where the batch is split, replicated elsewhere."""
        return [where_split if split else self.module.Replicate() for split in self.is_split]

    def own(self, call: Recorded) -> Recorded:
        """The call for the own sequences."""
        input, hx, batch_sizes, *_ = call.call
        mine = call.call._replace(
            input=self.sequences(input, self.dim), hx=self.sequences(hx, 1), batch_sizes=_held(batch_sizes)
        )
        mine = mine._replace(gain=_held(mine.gain))
        return call._replace(weights=[_held(w) for w in call.weights], call=mine)

    def sequences(self, x: Any, dim: int) -> Any:
        """The own ones of a tensor whose dimension `dim` is the batch; None for None."""
        return None if x is None else x.redistribute(self.mesh, self.placed(self.module.Shard(dim))).to_local()

    def whole(self, x: Tensor, where_split: Placement, shape: Sequence[int] | None = None) -> DTensor:
        """A DTensor of what each process has found; without a shape, so many times as large as that."""
        sizes: dict[str, Any] = {}
        if shape is not None:
            strides = x.stride()
            order = sorted(range(x.dim()), key=lambda dim: -strides[dim])
            stride = torch.empty_permuted(tuple(shape), order, device="meta").stride()
            sizes = {"shape": torch.Size(shape), "stride": stride}
        return self.module.DTensor.from_local(x, self.mesh, self.placed(where_split), run_check=False, **sizes)


def _held(x: Any) -> Any:
    """What this process holds of a tensor."""
    return x.to_local() if hasattr(x, "to_local") else x


@torch.no_grad()
def _forward(module: ModuleType, _cls: type, func: Callable, _types: Any, args: tuple, _kwargs: Any = None) -> tuple:
    call = recorded(*args)
    batch = _Batch(module, call)
    output, h_n, reserve = func(*flat(batch.own(call)))
    features = output.shape[-1]
    return (
        batch.whole(output, module.Shard(batch.dim), (*call.call.input.shape[:-1], features)),
        batch.whole(h_n, module.Shard(1), call.call.hx.shape),
        [batch.whole(x, module.Shard(0)) for x in reserve],  # for the same process's backward alone
    )


@torch.no_grad()
def _backward(module: ModuleType, _cls: type, func: Callable, _types: Any, args: tuple, _kwargs: Any = None) -> tuple:
    call = recorded_backward(*args)
    batch, given = _Batch(module, call.forward), call.forward.call
    own = Backward(
        batch.own(call.forward),
        batch.sequences(call.grad_output, batch.dim),
        batch.sequences(call.grad_h_n, 1),
        [_held(x) for x in call.reserve],
        call.has_input,
        call.needs,
    )
    d_input, d_hx, d_weights = func(*flat_backward(own))
    need_input, need_hx, *need_weights = call.needs
    differentiated = (*call.forward.weights, *differentiable(given))
    everywhere = module.Replicate()

    def placed(d: Tensor, need: bool, placement: Placement, like: Any) -> DTensor:
        """As the argument is; what nobody asked for is empty."""
        if not need:
            return batch.whole(d, everywhere)
        return batch.whole(d, placement, like.shape).redistribute(batch.mesh, like.placements)

    return (
        placed(d_input, need_input, module.Shard(batch.dim), given.input),
        placed(d_hx, need_hx, module.Shard(1), given.hx),
        [
            placed(d, need, module.Partial(), weight)
            for d, need, weight in zip(d_weights, need_weights, differentiated, strict=False)
        ],
    )
