"""The order of looks, products and publishes in the time loop of every persistent kernel, from its PTX: as the source
has them, none doubled, moved out of the loop or dropped. To be run by every version of Triton that is supported."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from conftest import generated_code
from ptx.compilation import compile_ptx

from trigru.kernels import persistent
from trigru.kernels.config import kept_values, one_use_of_a_fragment, persistent_config, persistent_width
from trigru.kernels.launch import using
from trigru.kernels.offline import Recorder
from trigru.kernels.recurrence import Gradients, Kept, Operands, Recurrence
from trigru.kernels.steps import Steps

pytestmark = generated_code

# W: a wait, whether it looks at the tiles of one product or of several. L: a tile's load behind an earlier wait. M:
# matrix products in a row. P: what is published at one place.
RESET_FORWARD = "WMPWMP" if one_use_of_a_fragment() else "WMPMWMP"
ORDER = {
    "data": {
        "forward_torch": "WMP",
        "backward_torch": "PPWM",
        "backward_torch, tile by tile": "PPWMWMWM",
        "forward_reset_first": RESET_FORWARD,
        "backward_reset_first": "PWMPMWM",
        "backward_reset_first, tile by tile": "PWMPWMWM",
    },
    "flags": {
        "forward_torch": "WLMP",
        "backward_torch": "PWLM",
        "backward_torch, tile by tile": "PWLMLMLM",
        "forward_reset_first": RESET_FORWARD.replace("W", "WL"),
        "backward_reset_first": "PWLMPMWLM",
        "backward_reset_first, tile by tile": "PWLMPLMWLM",
    },
}
EVENTS = {
    "W": r"ld\.relaxed\.gpu\.global\.v4\.b32|ld\.acquire\.gpu\.global\.b32",
    "L": r"ld\.global\.v4\.b32",
    "P": r"(@\S+ )?st\.relaxed\.gpu\.global(\.v\d)?\.b32 (?!.*\+16\])|(@\S+ )?(atom|red)\.\S*release",
    "M": r"(mma\.sync|wgmma\.mma_async|tcgen05\.mma)",
}


def time_loop(ptx: str) -> tuple[list[str], int, int]:
    """A kernel's lines, and the first and the last of its time loop."""
    lines = [line.strip() for line in ptx[ptx.index(".entry") :].splitlines()]
    labels = {label[1]: i for i, line in enumerate(lines) if (label := re.match(r"(\$\w+):", line))}
    loops = []
    for i, line in enumerate(lines):
        jump = re.match(r"(?:@!?%p\d+\s+)?bra(?:\.uni)?\s+(\S+);", line)
        if jump and jump[1] in labels and labels[jump[1]] < i:
            loops.append((i - labels[jump[1]], labels[jump[1]], i))
    return lines, *max(loops)[1:]


def events(ptx: str) -> tuple[str, int]:
    """What happens in the time loop, and how many looks and publishes lie outside it. Lines of an inline assembly count
    once; matrix products in a row, too."""
    lines, first, last = time_loop(ptx)
    inside, outside, seen = "", 0, ""
    for i, line in enumerate(lines):
        if line.startswith("// begin inline asm"):
            seen = ""
        kind = next((kind for kind, pattern in EVENTS.items() if re.match(pattern, line)), None)
        if kind is None or (kind != "M" and kind in seen):
            continue
        seen += kind
        if not first <= i <= last:
            outside += kind in "WP"
        elif kind != "M" or not inside.endswith("M"):
            inside += kind
    return inside, outside


def launches(variant: str, dtype: torch.dtype, batch: int, hidden_size: int, protocol: str, packed: bool):
    """A forward and a backward launch of a layer."""
    hidden_size = persistent_width(dtype, hidden_size)
    steps = Steps.of_batch_sizes([batch, batch - 1]) if packed else Steps.padded(2, batch)
    rows = steps.num_rows

    def empty(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    config = replace(persistent_config(dtype, batch, hidden_size), protocol=protocol)
    run = Recurrence(variant, packed, "tf32", config)
    bias = empty(hidden_size) if variant == "torch" else None
    state, output = empty(batch, hidden_size), empty(rows, hidden_size)
    operands = Operands(empty(rows, 3 * hidden_size), state, empty(3 * hidden_size, hidden_size), bias, steps)
    recorder = Recorder()
    with using(recorder):
        persistent.forward(run, operands, save=True)
        kept = Kept(output, empty(rows, kept_values(variant) * hidden_size))
        persistent.backward(run, operands, kept, Gradients(output, state))
    return recorder.launches


@pytest.mark.parametrize("protocol", ["data", "flags"])
@pytest.mark.parametrize("variant", ["torch", "cho"])
@pytest.mark.parametrize(
    ("arch", "dtype", "hidden_size", "rows"),
    [
        (90, torch.bfloat16, 512, "padded"),
        (80, torch.float16, 136, "packed"),
        (100, torch.float32, 256, "padded"),
    ],
)
def test_looks_products_and_publishes_in_order(arch, dtype, hidden_size, rows, variant, protocol):
    batch = 16 if rows == "padded" else 5
    for launch in launches(variant, dtype, batch, hidden_size, protocol, rows == "packed"):
        name = launch.kernel.__name__
        ptx = compile_ptx(launch.kernel, {**launch.args, **launch.constexprs}, arch, **launch.options).ptx
        inside, outside = events(ptx)
        wanted = ORDER[protocol]
        assert inside in (wanted[name], wanted.get(f"{name}, tile by tile")), name
        assert outside == 0, name
        looks = re.findall(r"^(@p )?ld\.relaxed\.gpu\.global\.v4", ptx, re.MULTILINE)
        assert looks.count("") == looks.count("@p "), name  # the second look is only at what the first has missed
        assert bool(looks) == (protocol == "data"), name
