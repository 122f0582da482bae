"""`trigru.swap` and `trigru.unswap`: put trigru's modules in the place of nn.GRU and nn.GRUCell, and back."""

from __future__ import annotations

import logging
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .modules import GRU, GRUCell
from .planning.plan import check_schedule
from .reference import check_variant

_LOG = logging.getLogger(__name__)
_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.GRU: GRU, nn.GRUCell: GRUCell}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}

Model = TypeVar("Model", bound=nn.Module)


def swap(model: Model, *, variant: str | None = None, schedule: str = "auto") -> Model:
    """Turn every `nn.GRU` and `nn.GRUCell` in `model`, at any depth, into `trigru.GRU` and `trigru.GRUCell`, in place.

    The modules stay the very same objects and only change their class, so parameters, buffers, hooks, names, training
    flag and every reference to them stay valid, as do optimisers; a module shared in two places stays shared.

    Left alone, with a warning in the log: subclasses of nn.GRU and nn.GRUCell (their own code would be lost), quantised
    and scripted ones, and modules whose `forward` was replaced on the instance. Parametrised modules
    (`torch.nn.utils.parametrize`) are swapped. What was swapped is logged at level INFO. Swap before wrapping by
    `fully_shard`, which makes subclasses.

    Args:
        model: any module; itself an nn.GRU or nn.GRUCell too.
        variant: equations that the swapped modules compute; None for "torch", those of nn.GRU.
        schedule: as for `trigru.GRU`.

    Returns:
        `model`.

    Raises:
        ValueError: unknown variant or schedule.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.GRU(8, 16))
        >>> layer = model[1]
        >>> trigru.swap(model)
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): GRU(8, 16)
        )
        >>> model[1] is layer, type(layer)
        (True, <class 'trigru.modules.GRU'>)
    """
    variant = "torch" if variant is None else variant
    check_variant(variant)
    check_schedule(schedule)
    for name, module in model.named_modules():
        theirs = _plain_class(module)
        if theirs not in _OURS:
            _report_kin(name, module)
        elif "forward" in vars(module):
            _LOG.warning("left alone: %s, whose forward was replaced on the instance", _where(name, module))
        else:
            _set_class(module, _OURS[theirs])
            module.variant = variant  # type: ignore[assignment]
            if isinstance(module, GRU):
                module.schedule = schedule  # type: ignore[assignment]  # checked when it is called
            _LOG.info("swapped: %s is now %s", _where(name, module), _OURS[theirs])
    return model


def unswap(model: Model) -> Model:
    """Turn every `trigru.GRU` and `trigru.GRUCell` in `model` into `nn.GRU` and `nn.GRUCell`, in place as `swap` does.

    Returns:
        `model`.

    Raises:
        ValueError: a module computes a variant other than "torch", which nn.GRU has not; nothing is changed then.

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
    for name, module in found:
        theirs = _THEIRS[_plain_class(module)]
        _set_class(module, theirs)
        for option in ("variant", "schedule", "memory"):
            vars(module).pop(option, None)
        _LOG.info("swapped back: %s is now %s", _where(name, module), theirs)
    return model


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


def _report_kin(name: str, module: nn.Module) -> None:
    """Warn about what is a GRU to its user, but none that can be swapped."""
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        _LOG.warning("left alone: %s, a subclass of %s", _where(name, module), _parent(module).__name__)
    elif type(module).__name__ in ("GRU", "GRUCell") and ".ao." in type(module).__module__:
        _LOG.warning("left alone: %s, which is quantised", _where(name, module))
    elif getattr(module, "original_name", None) in ("GRU", "GRUCell"):
        _LOG.warning("left alone: %s, which is scripted", _where(name, module))


def _parent(module: nn.Module) -> type[nn.Module]:
    return nn.GRU if isinstance(module, nn.GRU) else nn.GRUCell


def _where(name: str, module: nn.Module) -> str:
    cls = type(module)
    return f"{name or 'the model itself'} ({cls.__module__}.{cls.__qualname__})"
