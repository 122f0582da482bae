"""`trigru.swap` and `trigru.unswap`: put trigru's modules in the place of nn.GRU and nn.GRUCell, and back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from . import guests
from .cell import GRUCell
from .layer import Memory, ScheduleName, Variant
from .modules import GRU
from .planning.plan import check_memory, check_schedule
from .reference import check_variant

_LOG = logging.getLogger(__name__)
_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.GRU: GRU, nn.GRUCell: GRUCell}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}

Model = TypeVar("Model", bound=nn.Module)


def swap(
    model: Model,
    *,
    variant: Variant | None = None,
    schedule: ScheduleName = "auto",
    memory: Memory = "keep",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> Model:
    """Turn every `nn.GRU` and `nn.GRUCell` in `model`, at any depth, into `trigru.GRU` and `trigru.GRUCell`, in place.

    The modules stay the very same objects and only change their class, so parameters, buffers, hooks, names, training
    flag and every reference to them stay valid, as do optimisers; a module shared in two places stays shared.

    Left alone, with a warning in the log: subclasses of nn.GRU and nn.GRUCell (their own code would be lost), quantised
    and scripted ones, and modules whose `forward` was replaced on the instance. Parametrised modules
    (`torch.nn.utils.parametrize`) are swapped. Swap before wrapping by `fully_shard`, which makes subclasses.

    Each swapped module is logged at level INFO, by name and number, in the logger "trigru.swap"; `print(model)` shows
    them. A UserWarning says that nothing was swapped. TorchRL's GRUModule takes what was swapped in it as it does its
    own GRU; `trigru.rl.GRUModule` spares it the padding. Opacus' validator finds a trigru.GRU, and its fixer replaces
    it, as they do an nn.GRU.

    Args:
        model: any module; itself an nn.GRU or nn.GRUCell too.
        variant: equations that the swapped modules compute; None for "torch", those of nn.GRU.
        schedule, memory: as for `trigru.GRU`.
        filter_fn: called with each nn.GRU and nn.GRUCell and its name in `model`, "" for the model itself; those for
            which it is false stay as they are. None for all.

    Returns:
        `model`.

    Raises:
        ValueError: unknown variant, schedule or memory.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.GRU(8, 16), nn.GRU(16, 16))
        >>> layer = model[1]
        >>> trigru.swap(model, filter_fn=lambda module, name: name != "2")
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): trigru.GRU(8, 16)
          (2): GRU(16, 16)
        )
        >>> model[1] is layer, type(layer)
        (True, <class 'trigru.modules.GRU'>)
    """
    variant = "torch" if variant is None else variant
    check_variant(variant)
    check_schedule(schedule)
    check_memory(memory)
    chosen: list[tuple[str, nn.Module]] = []
    left: list[str] = []
    for name, module in list(model.named_modules()):
        if _plain_class(module) not in _OURS:
            left += _report_kin(name, module)
        elif filter_fn is not None and not filter_fn(module, name):
            left.append(f"{_where(name, module)}, by filter_fn")
        elif "forward" in vars(module):
            _LOG.warning("left alone: %s, whose forward was replaced on the instance", _where(name, module))
            left.append(_where(name, module))
        else:
            chosen.append((name, module))
    for number, (name, module) in enumerate(chosen, 1):
        was, ours = _where(name, module), _OURS[_plain_class(module)]
        _set_class(module, ours)
        module.variant = variant  # type: ignore[assignment]
        if isinstance(module, GRU):
            module.schedule = schedule
            module.memory = memory
        _LOG.info("swapped: %s is now %s, %d of %d", was, ours, number, len(chosen))
    if not chosen:
        _warn_of_nothing(model, left)
    return model


def unswap(model: Model) -> Model:
    """Turn every `trigru.GRU` and `trigru.GRUCell` in `model` into `nn.GRU` and `nn.GRUCell`, in place as `swap` does.

    Returns:
        `model`.

    Raises:
        ValueError: a module computes a variant other than "torch", or has an option, that nn.GRU has not; nothing is
            changed then.

    Example:
        >>> model = trigru.swap(nn.Sequential(nn.Linear(4, 8), nn.GRU(8, 16)))
        >>> type(trigru.unswap(model)[1])
        <class 'torch.nn.modules.rnn.GRU'>
        >>> trigru.unswap(trigru.GRU(4, 8, variant="cho"))
        Traceback (most recent call last):
            ...
        ValueError: variant: expected 'torch' in the model itself (trigru.modules.GRU), got 'cho'
    """
    found = [(name, module) for name, module in model.named_modules() if _plain_class(module) in _THEIRS]
    for name, module in found:
        if module.variant != "torch":
            raise ValueError(f"variant: expected 'torch' in {_where(name, module)}, got {module.variant!r}")
        if isinstance(module, GRU) and (further := module.further()):
            option, value = next(iter(further.items()))
            raise ValueError(f"{option}: expected its default in {_where(name, module)}, got {value!r}")
    for name, module in found:
        theirs = _THEIRS[_plain_class(module)]
        _set_class(module, theirs)
        for option in ("variant", "schedule", "memory"):
            vars(module).pop(option, None)
        _LOG.info("swapped back: %s is now %s", _where(name, module), theirs)
    for name, module in model.named_modules():
        if isinstance(module, (GRU, GRUCell)):
            _LOG.warning("left alone: %s, a subclass of trigru's", _where(name, module))
    return model


def _warn_of_nothing(model: nn.Module, left: list[str]) -> None:
    """Warn the caller of `swap` that there was nothing to swap, unless it is done already."""
    modules = dict(model.named_modules())
    if any(isinstance(module, (GRU, GRUCell)) for module in modules.values()):
        return
    message = f"swap: nothing was swapped in {type(model).__name__}"
    if left:
        message += f"; left alone: {', '.join(left)}"
    else:
        others = [
            _where(name, module) for name, module in modules.items() if isinstance(module, (nn.RNNBase, nn.RNNCellBase))
        ]
        message += ": expected an nn.GRU or nn.GRUCell in it, got " + (", ".join(others) or "no recurrent layer")
    warnings.warn(message, stacklevel=3)


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """The module's class; what it was before a parametrisation, which makes a class for its module."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Make `cls` the module's class; under a parametrisation, the base of the class that was made for it."""
    if parametrize.is_parametrized(module):
        old = type(module)
        own = {name: value for name, value in vars(old).items() if name not in ("__dict__", "__weakref__", "__doc__")}
        module.__class__ = type(f"Parametrized{cls.__name__}", (cls,), own)
    else:
        module.__class__ = cls


def _report_kin(name: str, module: nn.Module) -> list[str]:
    """Warn about what is a GRU to its user, but none that can be swapped; it with the reason, or nothing."""
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        reason = f"a subclass of {_parent(module).__name__}"
    elif type(module).__name__ in ("GRU", "GRUCell") and ".ao." in type(module).__module__:
        reason = "which is quantised"
    elif getattr(module, "original_name", None) in ("GRU", "GRUCell"):
        reason = "which is scripted"
    else:
        return []
    _LOG.warning("left alone: %s, %s", _where(name, module), reason)
    return [f"{_where(name, module)}, {reason}"]


def _parent(module: nn.Module) -> type[nn.Module]:
    return nn.GRU if isinstance(module, nn.GRU) else nn.GRUCell


def _where(name: str, module: nn.Module) -> str:
    cls = type(module)
    return f"{name or 'the model itself'} ({cls.__module__}.{cls.__qualname__})"


guests.tell_opacus(unswap)
