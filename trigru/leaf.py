"""`Leaf`: a module that is one piece to torch's tools, and says so where a tool would look inside or pass it over."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

from torch import fx, nn


class _Qconfig:
    """The attribute that torch.ao.quantization gives each module, by its class, before it replaces those it knows."""

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            return self
        try:
            return vars(module)["qconfig"]
        except KeyError:
            raise AttributeError("qconfig") from None

    def __set__(self, module: nn.Module, value: Any) -> None:
        vars(module)["qconfig"] = value
        warnings.warn(
            f"torch.ao.quantization knows modules by their class and leaves trigru.{type(module).__name__} in float: "
            "call trigru.unswap(model) before it, which makes it torch.nn's",
            stacklevel=3,
        )

    def __delete__(self, module: nn.Module) -> None:
        vars(module).pop("qconfig", None)


class Leaf(nn.Module):
    """Base of trigru's modules."""

    qconfig = _Qconfig()

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script asks of a module first."""
        name = type(self).__name__
        raise NotImplementedError(
            f"trigru.{name}: torch.jit.script cannot compile it. Call trigru.unswap(model) before it, which makes it "
            f"torch.nn.{name}, or use torch.jit.trace, torch.export or torch.compile"
        )

    def _draw(self, values: Mapping[str, float]) -> None:
        """What nn.RNNBase and nn.RNNCellBase draw, for all parameters but those of which values are given."""
        size: int = self.hidden_size  # type: ignore[assignment]
        bound = 1.0 / math.sqrt(size) if size > 0 else 0.0
        for name, parameter in self.named_parameters():
            name = name.removeprefix("parametrizations.").partition(".")[0]
            if name in values:
                nn.init.constant_(parameter, values[name])
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def _get_name(self) -> str:
        return shown_name(super()._get_name())


def traced(module: nn.Module, *inputs: Any, **arguments: Any) -> Any:
    """A call that torch.fx traces: of the module as it is, like one of torch.nn. Without what is None."""
    tracer: Any = inputs[0].tracer
    if getattr(tracer, "root", None) is module:
        raise fx.proxy.TraceError(
            f"trigru.{type(module).__name__} is a leaf: torch.fx traces a model that has it, not the module alone"
        )
    given = {name: x for name, x in arguments.items() if x is not None}
    positional = tuple(x for x in inputs if x is not None)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), positional, given)


def shown_name(name: str) -> str:
    """How a module is printed: so that it is not taken for torch's. Subclasses have names of their own."""
    return f"trigru.{name}" if name.removeprefix("Parametrized") in ("GRU", "GRUCell") else name
