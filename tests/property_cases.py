"""Random calls (hypothesis) and their data, for properties.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

import trigru

LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")
RESULTS_CHANGED = ("output changed in place", "h_n changed in place")
LEAVES_CHANGED = {f"{name} changed in place": name for name in ("input", "hx", "w_ih", "w_hh", "b_hh")}
ORDERS = ("once", "two calls, two backwards", "no_grad between", "backward twice", *RESULTS_CHANGED, *LEAVES_CHANGED)
ROWS = {
    "module": ("padded", "padded", "packed", "packed, unsorted", "unbatched"),
    "function": ("padded", "packed"),
    "cell": ("padded", "unbatched"),
}
OPTIONS = ("reset", "decay", "attention", "clip", "zoneout", "heads", "groups", "norm")
NOT_PACKED = ("mask", "lengths")
OF_MODULES = ("learned",)  # a first state
# Tensors, the last of the leaves: the option that they come with.
FURTHER = {"reset_state": "reset", "decay": "decay", "attention": "attention", "gain": "norm", "h0": "learned"}
CLIP = 0.6
ZONEOUT = 0.25  # in evaluation, where nothing is drawn
LEAVES = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")
# Powers of ten between which all products stay within the dtype.
LARGEST = {torch.float16: 3, torch.bfloat16: 30, torch.float32: 30, torch.float64: 30}


@dataclass(frozen=True)
class Case:
    """A call, its data as a seed."""

    kind: str  # "module", "function", "cell"
    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    reverse: bool  # of the function
    biases: tuple[bool, bool]
    batch_first: bool
    rows: str  # "padded", "packed", "packed, unsorted", "unbatched"
    has_hx: bool
    layout: str  # of input, hx and weights in memory
    dtype: torch.dtype
    variant: str
    options: tuple[str, ...]  # of those above, what a layer does beside the equations; of the module and the function
    memory: str
    schedule: str
    through: str  # "output", "h_n", "both"
    scales: tuple[int, int, int, int, int]  # powers of ten: input, hx, weights, biases, upstream gradients
    special: tuple[str, float] | None  # an element of this argument is NaN or infinite
    order: str
    seed: int
    frozen: tuple[str, ...] = ()  # of LEAVES, those that require no gradient
    autocast: bool = False  # whether all but input and hx are float32, and autocast is on
    num_heads: int = 1  # and, with the option "groups", so many groups

    @property
    def packed(self) -> bool:
        return self.rows.startswith("packed")

    @property
    def groups(self) -> int:
        return self.num_heads if "groups" in self.options else 1

    @property
    def has_lengths(self) -> bool:
        return self.packed or "lengths" in self.options

    @property
    def parts(self) -> int:
        return self.num_layers * (1 + self.bidirectional)


@st.composite
def cases(draw: st.DrawFn, kernels: bool = False, device: bool = False) -> Case:
    """Any case; with `kernels`, those of Triton's schedules that run in its interpreter, which are small; with `device`
    too, those of a GPU."""
    kind = draw(st.sampled_from(("module", "module", "module", "function", "cell")))
    schedule = "auto"
    if kernels and kind != "cell":
        schedule = draw(st.sampled_from(("auto", "stepwise", "resident") if device else ("stepwise", "resident")))
    elif kind != "cell":
        schedule = draw(st.sampled_from(("auto", "eager")))
    longest = {"cell": 1}.get(kind, 3 if kernels else draw(st.sampled_from((2, 5, 5, 20))))
    widest = 17 if kernels else draw(st.sampled_from((3, 20, 50)))
    # The interpreter cuts bfloat16 off where a GPU rounds.
    dtypes = (
        (torch.float32, torch.float16) if kernels else (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    )
    dtype = draw(st.sampled_from(dtypes))
    most = LARGEST[dtype]
    power = st.one_of(st.just(0), st.just(0), st.integers(-30 if most == 30 else -6, most))
    stacked = kind == "module"
    if kind != "function":
        bias = draw(st.booleans())
        biases = (bias, bias)
    else:
        biases = (draw(st.booleans()), draw(st.booleans()))
    rows: tuple[str, ...] = (
        ("padded", "unbatched") if kind == "cell" else ("padded", "padded", "packed", "packed, unsorted", "unbatched")
    )
    if kind == "function":
        rows = ("padded", "packed")
    chosen = draw(st.sampled_from(rows))
    options: list[str] = []
    if kind != "cell" and draw(st.booleans()):
        there: tuple[str, ...] = OPTIONS if chosen.startswith("packed") else (*OPTIONS, *NOT_PACKED)
        there += OF_MODULES if stacked else ()
        options = draw(st.lists(st.sampled_from(there), unique=True))
    if dtype.itemsize == 2 and "clip" in options:
        options.remove("clip")  # a state that rounds to the bound has another derivative
    one_layer = "decay" in options or "attention" in options
    some = st.lists(st.sampled_from(LEAVES), unique=True, max_size=2)
    frozen = draw(st.one_of(st.sampled_from(((), ("input",))), some))
    num_heads = draw(st.integers(2, 4)) if "heads" in options or "groups" in options else 1
    of_group = num_heads if "groups" in options else 1
    few = 1 if chosen.startswith("packed") or device else 0  # tests/fakecuda gives empty tensors no shape
    names = ["input", "hx", "w_ih", "w_hh", "b_ih", "b_hh", "upstream"]
    special = st.tuples(st.sampled_from(names), st.sampled_from((math.nan, math.inf, -math.inf)))
    return Case(
        kind=kind,
        seq_len=draw(st.integers(1, longest)),
        batch=1 if chosen == "unbatched" else draw(st.integers(few, 5 if kernels else 9)),
        input_size=of_group * draw(st.integers(1, -(-widest // of_group))),
        hidden_size=num_heads * draw(st.integers(1, -(-widest // num_heads))),
        num_layers=draw(st.integers(1, 2 if kernels else 3)) if stacked and not one_layer else 1,
        bidirectional=stacked and draw(st.booleans()),
        reverse=kind == "function" and draw(st.booleans()),
        biases=biases,
        batch_first=stacked and draw(st.booleans()),
        rows=chosen,
        has_hx="learned" not in options and draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        dtype=dtype,
        variant=draw(st.sampled_from(trigru.VARIANTS)),
        options=tuple(options),
        memory="keep" if kind == "cell" else draw(st.sampled_from(("keep", "recompute"))),
        schedule=schedule,
        through=draw(st.sampled_from(("both", "output", "h_n"))),
        scales=(draw(power), draw(power), draw(power), draw(power), draw(power)),
        # With options, what is not done is 0 times it in the reference, NaN where it is infinite.
        special=None if options else draw(st.one_of(st.none(), st.none(), special)),
        order=draw(st.sampled_from(ORDERS)),
        seed=draw(st.integers(0, 2**31)),
        frozen=tuple(sorted(frozen)),
        autocast=kind != "cell" and dtype.itemsize == 2 and not device and draw(st.booleans()),
        num_heads=num_heads,
    )


def leaves_of(case: Case) -> list[str]:
    """What each leaf is: input, hx unless it has none, the weights that there are, in nn.GRU's order, and FURTHER."""
    biases = [name for name, there in zip(("b_ih", "b_hh"), case.biases, strict=True) if there]
    weights = ["w_ih", "w_hh", *biases] * case.parts
    return ["input", *(["hx"] * case.has_hx), *weights, *further_of(case)]


def further_of(case: Case) -> list[str]:
    """The last leaves: one begins episodes with the learned state, where there is one."""
    names = [name for name, option in FURTHER.items() if option in case.options]
    return [name for name in names if name != "reset_state" or "learned" not in case.options]


@dataclass
class Data:
    """A case's tensors, in float64 but of values that its dtype has; see `leaves_of` for the leaves' names."""

    leaves: list[Tensor]
    upstream: list[Tensor]  # derivatives by output and h_n
    lengths: Tensor | None  # of packed input, or given as it is
    reset: Tensor | None  # as the input is laid out, as all that steps are given
    mask: Tensor | None


def data_of(case: Case) -> Data:
    generator = torch.Generator().manual_seed(case.seed)

    def random(name: str, power: int, *shape: int, over: int = 1) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**power / over**0.5
        x = x.to(case.dtype).double()
        if case.special is not None and case.special[0] == name and x.numel():
            index = int(torch.randint(x.numel(), (1,), generator=generator))
            x.view(-1)[index] = case.special[1]
        return x

    of_input, of_hx, of_weights, of_biases, of_upstream = case.scales
    directions, gates = 1 + case.bidirectional, 3 * case.hidden_size
    sizes = (case.batch, case.seq_len) if case.batch_first else (case.seq_len, case.batch)
    leaves = [random("input", of_input, *sizes, case.input_size)]
    if case.has_hx:
        leaves.append(random("hx", of_hx, case.parts, case.batch, case.hidden_size))
    for part in range(case.parts):
        width = case.input_size if part < directions else directions * case.hidden_size
        for name, columns in (("w_ih", width // case.groups), ("w_hh", case.hidden_size // case.num_heads)):
            leaves.append(random(name, of_weights, gates, columns, over=columns))
        for name, there in zip(("b_ih", "b_hh"), case.biases, strict=True):
            if there:
                leaves.append(random(name, of_biases, gates))
    flags = [torch.rand(sizes, generator=generator) < share for share in (0.3, 0.7)]
    reset, mask = (x if name in case.options else None for name, x in zip(("reset", "mask"), flags, strict=True))
    if "reset_state" in further_of(case):
        leaves.append(random("reset_state", of_hx, case.parts, case.batch, case.hidden_size))
    if "decay" in case.options:
        decay = torch.rand((*sizes, directions * case.hidden_size), generator=generator, dtype=torch.float64)
        leaves.append(decay.to(case.dtype).double())
    if "attention" in case.options:
        amount = torch.rand(sizes, generator=generator, dtype=torch.float64) * 2 - 0.5
        leaves.append(amount.clamp(0, 1).to(case.dtype).double())
    if "norm" in case.options:
        leaves.append(1 + random("gain", 0, case.parts, 2, gates, over=16))
        leaves[-1] = leaves[-1].to(case.dtype).double()
    if "learned" in case.options:
        leaves.append(random("h0", of_hx, case.parts, case.hidden_size))
    lengths = None
    if "lengths" in case.options:
        lengths = torch.randint(0, case.seq_len + 1, (case.batch,), generator=generator)
    if case.packed:
        lengths = torch.randint(1, case.seq_len + 1, (case.batch,), generator=generator)
        lengths[int(torch.randint(case.batch, (1,), generator=generator))] = case.seq_len
        if case.rows == "packed":
            lengths = lengths.sort(descending=True).values
    rows = (int(lengths.sum()),) if case.packed and lengths is not None else sizes
    upstream = [
        random("upstream", of_upstream, *rows, directions * case.hidden_size),
        random("upstream", of_upstream, case.parts, case.batch, case.hidden_size),
    ]
    return Data(leaves, upstream, lengths, reset, mask)
