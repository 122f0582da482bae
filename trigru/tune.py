"""`trigru.tune`: choose by measurement; and the choice at a first call, under torch.backends.cudnn.benchmark."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .explain import of_module
from .layer import Call, Layer, Records
from .modules import GRU
from .operators import site_of
from .planning import measured
from .planning.measured import Entry, Key, unit
from .planning.plan import Site, precision_of

SECONDS = 0.3  # a first call waits for it
KINDS = ("cpu", "cuda")
"""Devices with a clock that is known here."""


class Tuned(dict[Key, Entry]):
    """What was measured, by what it is valid for; printed, a line for each."""

    def __str__(self) -> str:
        said = [f"{key.direction} pass of a {unit(key)}: {entry.said(key)}" for key, entry in self.items()]
        return "\n".join(said) or "nothing to choose: there is one candidate only"


def tune(
    module: GRU,
    input: Tensor | PackedSequence,
    hx: Tensor | None = None,
    *,
    out: str | Path | None = None,
    seconds: float = 1.0,
) -> Tuned:
    """Time what can run a layer's calls, and take the fastest from now on, wherever `schedule="auto"` is asked for.

    Candidates are the schedules that can run here, a few tile sizes of theirs, and cuDNN; on a CPU the eager schedule
    with several sizes of its chunks, and torch's own. Where heads have programs of their own, cuDNN is the only other
    one. A call without gradients is timed, and a training step, if a parameter or the input requires a gradient. Each
    candidate's results are compared with the first one's before it is timed, and a wrong one is refused, with a
    RuntimeWarning that names it.

    What is found holds in this process, or, with `out`, in every later one for which TRIGRU_TUNED in the environment
    names that file: for this device, these versions, dtype, sizes, and for sequence lengths and input sizes up to the
    next power of two. `trigru.explain` then says "measured", with the figures.

    With `torch.backends.cudnn.benchmark = True` the first call of each new shape does the same by itself, but for calls
    in a CUDA graph's capture, under torch.compile, autocast, a transform or a mode, and with deterministic algorithms.

    Args:
        module: a `trigru.GRU` with schedule="auto".
        input, hx: what it would be called with.
        out: a file to store what was found in, beside what it holds already.
        seconds: about how long to time the candidates for each of the two, beside what compiling them takes.

    Returns:
        What was measured, fastest first; nothing where there is one candidate only.

    Raises:
        TypeError: `module` is no trigru.GRU.
        ValueError: its schedule is not "auto"; `seconds` is not positive; the file `out` holds something else.
        RuntimeError: neither a CPU nor a GPU of CUDA or ROCm; results are no numbers, and cannot be compared.

    Example:
        >>> layer, x = trigru.GRU(8, 16), torch.randn(50, 2, 8)
        >>> found = trigru.tune(layer, x, seconds=0.01)
        >>> print(trigru.explain(layer, x))  # doctest: +ELLIPSIS
        schedule ... on cpu: measured on ... us a training step; ... us...
    """
    if not isinstance(module, GRU):
        raise TypeError(f"module: expected a trigru.GRU, got {type(module).__module__}.{type(module).__qualname__}")
    if module.schedule != "auto":
        raise ValueError(f"module: expected schedule 'auto', which can be chosen for, got {module.schedule!r}")
    if not seconds > 0:
        raise ValueError(f"seconds: expected a number above 0, got {seconds}")
    records = of_module(module, input, hx)
    site = site_of(*records)
    if site.given:
        raise RuntimeError(f"module: nothing is measured for steps with {', '.join(site.given)}")
    if site.device.type not in KINDS:
        raise RuntimeError(f"input: expected a tensor on one of {', '.join(KINDS)}, got one on {site.device.type}")
    from .measuring import measure

    found = Tuned()
    for recording in (False, True) if site.recording else (False,):
        found.update(measure(records, site._replace(recording=recording), seconds=seconds))
    if out is not None:
        measured.store(Path(out), found)
    return found


_tried: set[Key] = set()
"""What has been measured or cannot be, so that a first call is one."""


def at_first_call(layer: Layer, weights: Sequence[Tensor], call: Call, site: Site) -> None:
    """Under torch.backends.cudnn.benchmark: measure the candidates for a plain call, unless that was done."""
    deterministic = torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
    if (
        layer.schedule != "auto"
        or deterministic
        or site.given
        or site.device.type not in KINDS
        or not call.input.numel()
    ):
        return
    key = measured.key_at_hand(layer, site, "forward", precision_of(site.dtype))
    if key in measured.TABLE or key in _tried:
        return
    if site.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    from .measuring import NotFinite, measure

    _tried.add(key)
    try:
        measure(Records(layer, weights, call), site, seconds=SECONDS)
    except NotFinite:  # of this call; another one may do
        _tried.discard(key)
    except Exception as error:  # the call itself raises it again, or runs otherwise
        message = next(iter(str(error).strip().splitlines()), "no message")
        warnings.warn(f"trigru: nothing was measured: {type(error).__name__}: {message}", RuntimeWarning, stacklevel=5)
