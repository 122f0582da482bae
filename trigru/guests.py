"""Code of other libraries that goes by a module's class, and so does not know a `trigru.GRU` for an nn.GRU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .modules import GRU
from .operators.late import when_imported


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
