"""Forward and backward of several models that should find the same, timed in turns."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

REPEATS = 15


def compare(names: list[str], models: list[nn.Module], loss_of: Callable[[nn.Module], Tensor]) -> None:
    """Print the shortest time of each, and by how much the first is faster; their gradients must be equal."""
    taken: list[list[float]] = [[] for _ in models]
    grads: list[tuple[Tensor, ...]] = [()] * len(models)
    for number in list(range(len(models))) * REPEATS:
        start = time.perf_counter()
        grads[number] = torch.autograd.grad(loss_of(models[number]), list(models[number].parameters()))
        taken[number].append(time.perf_counter() - start)
    print(f"  {names[0]}: {min(taken[0]) * 1e3:.1f} ms")
    for name, times, found in zip(names[1:], taken[1:], grads[1:], strict=True):
        for got, want in zip(found, grads[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
        faster = min(times) / min(taken[0])
        print(f"  {name}: {min(times) * 1e3:.1f} ms, the same gradients: speed-up {faster:.1f}")
