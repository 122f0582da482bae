"""Code of other libraries that goes by a module's class, and so does not know a `trigru.GRU` for an nn.GRU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from .cell import GRUCell
from .modules import GRU
from .operators.late import when_imported

# Library and class of parents that ask isinstance(child, nn.GRU), and what they do where it is not.
_PARENTS = {
    ("torchrl", "GRUModule"): "fails on whole trajectories with an episode that ends in them",
}


def warn_of_parents(model: nn.Module) -> None:
    """Warn the caller of `swap` of modules that hold one of trigru's but want nn.GRU itself."""
    for name, parent in model.named_modules():
        if not any(isinstance(child, (GRU, GRUCell)) for child in parent.children()):
            continue
        for cls in type(parent).__mro__:
            reason = _PARENTS.get((cls.__module__.partition(".")[0], cls.__name__))
            if reason is not None:
                warnings.warn(
                    f"{cls.__name__} ({name or 'the model itself'}) now holds a trigru.GRU, which it takes for none of "
                    f"its own: it {reason}. Call trigru.unswap on it, or leave it out by filter_fn",
                    stacklevel=3,
                )


def tell_opacus(unswap: Callable[[nn.Module], nn.Module]) -> None:
    """Register `trigru.GRU` with Opacus as nn.GRU is, as soon as Opacus is imported."""
    when_imported("opacus.validators", lambda validators: _register(validators, unswap))


def _register(validators: Any, unswap: Callable[[nn.Module], nn.Module]) -> None:
    """What Opacus finds wrong with an nn.GRU, and its replacement, for `trigru.GRU` too."""
    known = validators.ModuleValidator
    validate, fix = known.VALIDATORS.get(nn.GRU), known.FIXERS.get(nn.GRU)
    if validate is None or fix is None:
        return

    def fixed(module: GRU, **options: Any) -> nn.Module:
        # In place: Opacus gives a module of a copy of the model, which it then replaces.
        return fix(unswap(module), **options)

    validators.register_module_validator(GRU)(validate)
    validators.register_module_fixer(GRU)(fixed)
