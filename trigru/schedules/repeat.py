"""A call like one before, without the Python that led there.

What a call of the Triton schedules does on the host depends on what it is of, not on the values in its tensors: the
same operations, and the same launches, in the same order. `noted` runs such a call and notes them, as a function of its
tensors that does nothing else: straight Python code. That takes a tenth of the time of the way through plan, schedule
and launch, which a short sequence on a GPU would otherwise wait for.

Only torch's functions, and launches through the object that Triton compiled, are noted. Whatever else is met (a value
read from a tensor, a tensor from somewhere else, a launch that only Triton may make) makes a call that is not repeated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..kernels import launch, watch
from ..kernels.errors import DoesNotFit

Function = Callable[..., Any]
FEW = 2  # calls of a kind, before one is noted: sizes that hardly come again are not worth it
MOST_LINES = 256  # a call of many launches is not kept waiting by what leads to them

# What gives a tensor's own memory, or a part of it, and does nothing else.
_VIEWS = frozenset(
    ("view", "narrow", "select", "split_with_sizes", "chunk", "unbind", "reshape", "contiguous", "t", "transpose")
) | frozenset(("squeeze", "unsqueeze", "view_as"))

# What gives memory, and nothing in it.
_MEMORY = frozenset(("empty", "new_empty", "empty_like"))
_SHARED = 1 << 20
"""Bytes up to which memory that only launches see shares one allocation, until the call is over: each of its own takes
the host as long as a launch. What is larger is free for others as soon as nothing reads it any more."""
_ALIGNED = 256  # bytes; more than any kernel counts on
_LIKE = 16  # bytes: where a given tensor is aligned so, Triton's kernels are others

# What is asked of a tensor and is the same whenever its shape, strides and kind are; of its address only whether it is
# aligned is asked, which what was noted asks first.
_ASKED = frozenset(
    ("__get__", "__len__", "size", "stride", "dim", "numel", "is_contiguous", "element_size", "storage_offset")
) | frozenset(("data_ptr", "untyped_storage"))


class Repeated:
    """A function of tensors, from some calls on repeated as it was noted."""

    def __init__(self) -> None:
        self.left: float = FEW
        self.again: Function | None = None

    def __call__(self, function: Function, tensors: Sequence[Tensor | None]) -> Any:
        """What `function` gives for the tensors, in tuples and lists."""
        if self.again is not None:
            try:
                if (result := self.again(*tensors)) is not None:
                    return result
            except RuntimeError as error:
                self.refused(error)
        if self.left:
            self.left -= 1
            return function(tensors)
        result, self.again = noted(function, tensors)
        if self.again is None:
            self.left = math.inf
        return result

    def refused(self, error: RuntimeError) -> None:
        """What `again` raised: raise it, unless its launches do not fit on the device. Then it is over."""
        if not isinstance(named := launch.named(error), DoesNotFit):
            raise named from None
        self.again, self.left = None, math.inf  # what runs instead is the plan's to say


def noted(function: Function, tensors: Sequence[Tensor | None]) -> tuple[Any, Function | None]:
    """What `function` gives for these tensors, and it again as a function of others of the same kind; None where it
    cannot be repeated. Raises what it raises. Again it gives None, and does nothing, where a launch would read or write
    a given tensor that is not aligned."""
    aliases = [None if x is None else x.detach() for x in tensors]  # one each, where one tensor has two places
    notes = _Notes(aliases)
    with launch.noting(notes.launched), notes:
        result = function(aliases)
    return result, notes.again(result)


class _Line(NamedTuple):
    """An operation or a launch, as code."""

    text: str
    result: str = ""
    removable: bool = False  # it does nothing but give its result
    memory: int = -1  # so many bytes are all that it gives
    launch: bool = False

    def __str__(self) -> str:
        return f"{self.result} = {self.text}" if self.result else self.text

    @property
    def names(self) -> set[str]:
        """Those of its results."""
        return set(_NAMES.findall(self.result))

    @property
    def used(self) -> set[str]:
        """Those that it reads."""
        return set(_NAMES.findall(self.text))


_NAMES = re.compile(r"\b[vx]\d+\b")


class _Notes(TorchFunctionMode):
    """Lines of code, one for each operation and launch; tensors by names."""

    def __init__(self, given: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.given = [f"x{i}" for i in range(len(given))]
        known = {name: x for name, x in zip(self.given, given, strict=True) if x is not None}
        self.names = {id(x): name for name, x in known.items()}
        self.owners = {id(x): x for x in known.values()}  # of its memory: a tensor that is a view of no other
        self.held: list[Any] = list(given)  # none may take the place of another in memory
        self.constants: dict[str, Any] = {}
        self.lines: list[_Line] = []
        self.launches = False
        self.pointers: list[str] = []  # of given tensors that launches take
        self.repeatable = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", None)
        result = func(*args, **kwargs)
        found = [x for x in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(x, Tensor)]
        if not found:
            self.repeatable &= name in _ASKED
            return result
        memory = self._memory(result) if name in _MEMORY else None
        if memory is None:
            texts = [*map(self._text, args), *(f"{key}={self._text(x)}" for key, x in kwargs.items())]
        for x in found:
            if id(x) not in self.names:
                self.held.append(x)
                self.names[id(x)] = f"v{len(self.held)}"
                shared = name in _VIEWS and x.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr()
                self.owners[id(x)] = self.owners.get(id(args[0]), x) if shared else x
        place = ", ".join(self.names[id(x)] for x in found) + ("," if isinstance(result, (tuple, list)) else "")
        if memory is not None:
            self.lines.append(_Line(memory, place, True, result.nbytes))
        elif not (name == "contiguous" and result is args[0]):
            self.lines.append(_Line(f"{self._constant(func)}({', '.join(texts)})", place, name in _VIEWS))
        return result

    def launched(self, run: Function | None, arguments: Sequence[Any] = ()) -> None:
        """Note a launch. run: None where only Triton may make it."""
        if run is None:
            self.repeatable = False
            return
        self.launches = True
        texts = (self._pointer(x) if isinstance(x, Tensor) else self._text(x) for x in arguments)
        self.lines.append(_Line(f"{self._constant(run)}({', '.join(texts)})", launch=True))

    def _memory(self, x: Tensor) -> str | None:
        """Memory like x, on a GPU, by the call that takes the least time; None: by the one that made x."""
        given = self._given_on_gpu()
        if not x.is_cuda or not x.is_contiguous() or not given:
            return None
        for name, one in given:
            if one.is_contiguous() and one.shape == x.shape and one.dtype == x.dtype:
                return f"{self._constant(torch.empty_like)}({name})"
        name, one = next((pair for pair in given if pair[1].dtype == x.dtype), given[0])
        shape = ", ".join(map(str, x.shape)) or "()"
        dtype = "" if one.dtype == x.dtype else f", dtype={self._constant(x.dtype)}"
        return f"{self._constant(Tensor.new_empty)}({name}, {shape}{dtype})"

    def _given_on_gpu(self) -> list[tuple[str, Tensor]]:
        pairs = zip(self.given, self.held, strict=False)
        return [(name, x) for name, x in pairs if x is not None and x.is_cuda]

    def _shared(self, lines: Sequence[_Line]) -> list[_Line]:
        """With one allocation for all memory that only launches see."""
        seen = {name for line in lines if not line.launch for name in line.used}
        sizes = {line.result: line.memory for line in lines if line.result not in seen and 0 <= line.memory <= _SHARED}
        if len(sizes) < 2:
            return list(lines)
        *offsets, end = accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes.values()), initial=0)
        like, x = self._given_on_gpu()[0]
        first = [
            _Line(f"{self._constant(Tensor.new_empty)}({like}, {end // x.element_size()})", "shared"),
            _Line("shared.data_ptr()", "start"),
            *(_Line(f"start + {offset}", f"at_{name}") for name, offset in zip(sizes, offsets, strict=True)),
        ]
        names = re.compile(rf"\b({'|'.join(sizes)})\b(\.data_ptr\(\))?")
        others = [line for line in lines if line.result not in sizes]
        return first + [line._replace(text=names.sub(r"at_\1", line.text)) if line.launch else line for line in others]

    def _pointer(self, x: Tensor) -> str:
        """What a launch takes for a tensor: of a view, a place in the memory of what it is a view of."""
        if not x.is_cuda:  # where a kernel writes that it gave up: the host's memory, always the same
            return self._constant(x)
        owner = self.owners.get(id(x), x)
        offset, name = x.data_ptr() - owner.data_ptr(), self._text(owner)
        if name in self.given:
            name = f"of_{name}"
            if name not in self.pointers:
                self.pointers.append(name)
            return f"{name} + {offset}" if offset else name
        return f"{name}.data_ptr() + {offset}" if offset else name

    def _text(self, x: Any) -> str:
        if x is None or type(x) in (int, bool):
            return repr(x)
        if x is launch.STREAM:
            return "here"
        if isinstance(x, Tensor):
            self.repeatable &= id(x) in self.names
            return self.names.get(id(x), "unknown")
        if type(x) in (tuple, list):
            inner = "".join(f"{self._text(one)}, " for one in x)
            return f"({inner})" if type(x) is tuple else f"[{inner}]"
        return self._constant(x)

    def _constant(self, x: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = x
        return name

    def again(self, result: Any) -> Function | None:
        """All that was noted, as a function of the tensors."""
        lines = self._shared(_needed([*self.lines, _Line(f"return {self._text(result)}")]))
        if not self.repeatable or len(lines) > MOST_LINES:
            return None
        first = []
        if self.launches:
            stream, device = launch.current()
            self.constants |= {"check": watch.check, "stream": stream}
            first = [f"{name} = {name.removeprefix('of_')}.data_ptr()" for name in self.pointers]
            first += [f"if ({' | '.join(self.pointers)}) % {_LIKE}: return None"] if first else []
            first += ["check()", f"here = stream({device})"]
        code = [f"def again({', '.join(self.given)}):", *first, *_freeing(lines)]
        exec(compile("\n    ".join(code), "<a call of trigru, again>", "exec"), self.constants)
        return self.constants.pop("again")


def _needed(lines: Sequence[_Line]) -> list[_Line]:
    """Without views that nothing reads."""
    kept: list[_Line] = []
    used: set[str] = set()
    for line in reversed(lines):
        if not line.removable or line.names & used:
            kept.append(line)
            used |= line.used
    return kept[::-1]


def _freeing(lines: Sequence[_Line]) -> Iterator[str]:
    """Each line, and behind the last one that has a name, the end of that name: its memory is free for others."""
    last = {name: i for i, line in enumerate(lines) for name in line.used | line.names if name.startswith("v")}
    for i, line in enumerate(lines):
        yield str(line)
        if over := [name for name, where in last.items() if where == i and i + 1 < len(lines)]:
            yield f"del {', '.join(over)}"
