"""How long it takes two programs to pass a value to each other and back through L2: the floor of an exchange.

The protocol is that of the kernels' exchange (kernels/exchange.py): every value has a place of its own, filled before
the launch with a pattern that is never sent, so that a value tells for itself that it has arrived. Program 0 sends, 1
waits for it and answers, 0 waits for the answer: a round.

The wait is bounded. A program that has looked SPINS times says so in the error word and from then on waits no more, so
that both leave.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trigru.kernels.errors import KernelTimeout
from trigru.kernels.launch import launch

SPINS = 1 << 22  # looks; one takes about a microsecond
PATTERN = -1  # never sent
ACCESSES = ("relaxed", "volatile")
"""How values are passed: both relaxed, in the scope of the GPU, as in the kernels' exchange; a weak store around L1 and
a volatile look."""


@triton.jit
def _send(pointer, x, ACCESS: tl.constexpr):
    if ACCESS == "volatile":
        tl.store(pointer, x, cache_modifier=".cg")
    else:
        tl.inline_asm_elementwise(
            "st.relaxed.gpu.global.b32 [$1], $2; mov.b32 $0, $2;",
            "=r,l,r",
            [pointer, x],
            tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def _look(pointer, ACCESS: tl.constexpr):
    if ACCESS == "volatile":
        return tl.load(pointer, volatile=True)
    else:
        return tl.inline_asm_elementwise(
            "ld.relaxed.gpu.global.b32 $0, [$1];", "=r,l", [pointer], tl.int32, is_pure=False, pack=1
        )


@triton.jit
def ping_pong(cells_ptr, error_ptr, rounds, SPINS: tl.constexpr, ACCESS: tl.constexpr):
    """`cells_ptr`: int32 (2 * rounds,), filled with -1; the values sent and the answers, in turn."""
    me = tl.program_id(0)
    left = SPINS
    for i in range(rounds):
        if me == 0:
            _send(cells_ptr + 2 * i, i, ACCESS)
        awaited = cells_ptr + 2 * i + 1 - me
        x = _look(awaited, ACCESS)
        looks = 0
        while (x == -1) & (looks < left):
            x = _look(awaited, ACCESS)
            looks += 1
        if x == -1:
            tl.store(error_ptr, 1)
            left = 0
        if me == 1:
            _send(cells_ptr + 2 * i + 1, x, ACCESS)


@triton.jit
def nothing(cells_ptr):
    """A kernel of which only the launch takes time."""


def new_cells(rounds: int, device: str) -> tuple[Tensor, Tensor]:
    """The places of the values, and the error word."""
    cells = torch.full((2 * rounds,), PATTERN, dtype=torch.int32, device=device)
    return cells, torch.zeros(1, dtype=torch.int32, device=device)


def play(cells: Tensor, error: Tensor, spins: int = SPINS, access: str = ACCESSES[0]) -> None:
    """Start the two programs, together, on fresh `cells`. access: one of ACCESSES."""
    args = {"cells_ptr": cells, "error_ptr": error, "rounds": cells.numel() // 2}
    launch(ping_pong, (2,), args, {"SPINS": spins, "ACCESS": access}, num_warps=1, num_stages=1, cooperative=True)


def launch_nothing(cells: Tensor) -> None:
    """Start the empty kernel."""
    launch(nothing, (1,), {"cells_ptr": cells}, {}, num_warps=1, num_stages=1)


def check(cells: Tensor, error: Tensor) -> None:
    """Raise KernelTimeout unless every value came and was answered."""
    sent, answered = cells.view(-1, 2).unbind(1)
    want = torch.arange(sent.numel(), dtype=cells.dtype, device=cells.device)
    if error.item() or not (torch.equal(sent, want) and torch.equal(answered, want)):
        raise KernelTimeout("ping_pong: a program gave up waiting for the other; there is no round trip to report")
