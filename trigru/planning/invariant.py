"""`trigru.batch_invariant`: while it is on, what a sequence gets does not depend on the batch that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SEQUENCES = 16
"""The batch that schedules and tiles are chosen for, whatever a call's own is."""

SAID = f"; chosen and tiled for a batch of {SEQUENCES}, within trigru.batch_invariant()"

_blocks = 0


def is_on() -> bool:
    """Whether a block is open, in any thread: backward has threads of its own."""
    return _blocks > 0


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Within the block, equal bits for a sequence in every batch: alone, among others, and in whatever place.

    What is promised: the output and last state of each sequence, and the derivatives by its input and first state, are
    the same bits for every batch size and whatever the other sequences hold, as long as the sequence, its number of
    steps, the layer, the device and the versions are the same; if packed, its number of steps, not that of the others.
    Triton kernels do it: schedules and tile sizes are chosen for a batch of 16, nothing measured is taken, and the
    products of all steps are kernels of fixed tiles too, not torch's, which sums otherwise for other sizes.

    What is not: derivatives by weights and by what is shared by the sequences, which are sums over the batch; masks
    that are drawn at random; bits equal to those of a call outside of the block.

    The block holds for all threads, for backward has threads of its own, and backward must run within it. In it a call
    that no kernel runs raises: on a CPU, in float64, with norm="layer", under `torch.func`, and of a schedule by name
    that is not Triton's.

    Example:
        >>> layer, x = trigru.GRU(8, 16, schedule="eager"), torch.randn(50, 2, 8)
        >>> with trigru.batch_invariant():
        ...     layer(x)
        Traceback (most recent call last):
            ...
        RuntimeError: schedule 'eager' cannot run within trigru.batch_invariant(): torch's products may be summed \
otherwise in another batch; chosen because asked for by name
    """
    global _blocks
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1


def refuse(what: str, why: str = "") -> None:
    """Raise RuntimeError where only kernels may run."""
    if is_on():
        because = f"; chosen because {why}" if why else ""
        raise RuntimeError(
            f"{what} cannot run within trigru.batch_invariant(): torch's products may be summed "
            f"otherwise in another batch{because}"
        )
