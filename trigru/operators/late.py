"""Registrations with parts of torch that are not imported with it, made when somebody imports them.

torch.utils.flop_counter imports Triton, and takes longer than all of trigru; it cannot be imported for a registration.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

Registration = Callable[[ModuleType], None]


def when_imported(name: str, register: Registration) -> None:
    """Call `register` with the module of this name once it is there."""
    module = sys.modules.get(name)
    if module is not None:
        register(module)
    else:
        sys.meta_path.insert(0, _Waiting(name, register))


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds one module as it would be found without, and registers once it has run."""

    def __init__(self, name: str, register: Registration) -> None:
        self.name, self.register = name, register
        self.asks = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name or self.asks:
            return None
        self.asks = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.asks = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, self)
        return spec


class _Registering(importlib.abc.Loader):
    """A loader that does one thing more."""

    def __init__(self, loader: importlib.abc.Loader, waiting: _Waiting) -> None:
        self.loader, self.waiting = loader, waiting

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        if self.waiting in sys.meta_path:
            sys.meta_path.remove(self.waiting)
            self.waiting.register(module)
