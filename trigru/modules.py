"""`trigru.GRU`: parameters, shapes, results and errors as nn.GRU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import Arguments

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from . import operators
from .autocast import cast
from .blocks import Blocks, is_exported, whole_weights
from .checks import check, expect_tensor, first_of, layer_of, refuse_nested
from .layer import Call, Layer, Memory, Records, ScheduleName, Variant
from .leaf import Leaf, traced
from .operators.direct import direct
from .options import NO_OPTIONS, Finish, Options, PerCall, Rows, as_attribute, per_call, prepare
from .planning.plan import check_memory, check_schedule
from .reference import check_variant
from .schedules.cudnn import lay_flat


def _gain_of(names: Sequence[str]) -> str:
    """The name of the gain beside the weights of these names."""
    return names[0].replace("weight_ih", "gain")


_STATIC = attrgetter(
    *("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "training"),
    *("bidirectional", "_reverse", "variant", "schedule", "memory"),
)
"""What `GRU._layer` goes by."""


class GRU(Leaf, nn.RNNBase):
    """A multi-layer GRU: `nn.GRU` with a choice of equations and of schedule.

    Parameters, their names, shapes and initial values, state_dict, results and errors are those of `nn.GRU`, so weights
    load both ways. It is no subclass of `nn.GRU`, because torch.compile refuses those.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as `nn.GRU`.
        variant: which equations; `trigru.reference` has them.
            "torch": nn.GRU's and cuDNN's. The reset gate scales the product W_hn h.
            "cho": Cho et al. 2014. The reset gate scales the state before the product; for weights of such models.
            "chung": Chung et al. 2014. As "cho", with an update gate that says how much is new, not how much stays.
        schedule: what runs it; `trigru.explain` says what "auto" takes for a call.
            "auto": the fastest of those below that can run here, as measured (`trigru.tune`), else as predicted; not
            measured, "cudnn" is no candidate. What one wants, but to measure or to pin a choice.
            "eager": torch operations. On any device, and in float64; what runs on a CPU.
            "stepwise": a Triton kernel or two a step. On any GPU, of any hidden_size.
            "walking": one cooperative Triton kernel that does the same. On NVIDIA, of any hidden_size.
            "resident": one Triton kernel for the sequence, all weights on one multiprocessor. For a small hidden_size.
            "persistent": one cooperative Triton kernel, weights on chip across the GPU. For NVIDIA, up to
            hidden_size 2048 in 16 bits, 1024 in TF32.
            "cudnn": cuDNN, as torch's own GRU on an NVIDIA GPU: variant "torch".
        memory: what forward leaves for backward.
            "keep": the gates too. The faster one.
            "recompute": the states alone, a fifth to a quarter of it; backward computes the gates again.
        zoneout: rate in [0, 1] at which a unit's state is carried over a step as it is; in evaluation that share of
            every state is (Krueger et al. 2017, as haste has it).
        recurrent_dropout: rate at which a unit is left out of what the recurrent products see of the state, the same
            units at all steps of a call, others scaled by 1 / (1 - rate); the blend sees the whole state (Gal and
            Ghahramani 2016, as Keras has it, with one mask for the three gates).
        weight_dropout: rate at which recurrent weights are left out, the same at all steps of a call, others scaled by
            1 / (1 - rate) (DropConnect: Wan et al. 2013, Merity et al. 2018).
        clip: the largest size of a state that a step ends with, with the derivative of `torch.clamp`; hx is not
            clipped (LFADS, Pandarinath et al. 2018). None for any.
        num_heads: so many blocks on the diagonal of W_hh, which is then (3 * hidden_size, hidden_size / num_heads):
            units see those of their own head alone. "resident" runs each head by itself, wherever one fits, and "eager"
            multiplies large ones so; else, and for what is exported, the whole matrix is made of it.
        groups: so many groups of inputs, each seen by as many groups of units alone: W_ih is (3 * hidden_size, features
            / groups), and W_hh has at least as many heads (DeepFilterNet's and GTCRN's grouped layers).
        norm: "layer" normalises the products with the input and with the state, each with a gain of 3 * hidden_size
            (`gain_l0`, ...: (2, 3 * hidden_size)) and no shift, as haste has it; see `trigru.reference`. For "eager",
            "stepwise" and "resident"; the others' programs would have to exchange statistics in each step.
        learn_initial_state: a parameter `h0` (directions * num_layers, hidden_size), zeros at first: the state where
            no hx is given, and where an episode begins without a reset_state.
        proj_size: refused, as by `nn.GRU`.

    Inputs: input, hx
        - input: (seq_len, batch, input_size), (batch, seq_len, input_size) with batch_first, unbatched (seq_len,
          input_size), or a PackedSequence.
        - hx: (directions * num_layers, batch, hidden_size), or (directions * num_layers, hidden_size) unbatched; zeros
          if None.

    Keywords of a call, for each step or sequence; with batch_first (batch, seq_len, ...), unbatched without batch, and
    for a PackedSequence one or as its data. `trigru.reference.Options` has the equations:
        - reset: (seq_len, batch) bool, True where an episode begins: the state before that step is `reset_state`, in
          every layer. In reverse an episode begins at its last step. What was before reaches neither values nor
          gradients, NaN included. hx is the state before the first step of the call (in reverse the last).
        - reset_state: zeros if None; or (directions * num_layers, hidden_size), as hx, or for the step that begins from
          it (seq_len, directions * num_layers, batch, hidden_size), whatever batch_first says.
        - lengths: (batch,) integers on the input's device, of sequences in any order, 0 too: outputs past the end are
          zeros, h_n is each sequence's last state, the reverse direction begins at each sequence's end, and the padding
          may hold anything. On a GPU nothing is synchronised, so numbers outside 0 ... seq_len are not seen.
        - mask: (seq_len, batch) bool, True where a step is used (Keras): another one carries the state on, which is
          then its output too.
        - decay: (seq_len, batch, directions * hidden_size or 1): what is left of the state that a step begins from
          (GRU-D, Che et al. 2018; see `trigru.GRUD`). For one layer.
        - attention: (seq_len, batch): how much of a step is done (AUGRU of DIEN, Zhou et al. 2019). For one layer.

    Outputs: output, h_n
        - output: as input, with directions * hidden_size features.
        - h_n: as hx.

    Raises:
        ValueError, TypeError, RuntimeError: as `nn.GRU`; ValueError for an unknown variant, schedule or memory, a rate
            or clip outside its range, heads or groups that do not divide, keywords that cannot be combined;
            RuntimeError for a schedule by name that cannot run here, and a keyword's shape, dtype or device.

    Example:
        >>> layer = trigru.GRU(8, 16, batch_first=True)
        >>> output, h_n = layer(torch.randn(2, 5, 8))
        >>> output.shape, h_n.shape
        (torch.Size([2, 5, 16]), torch.Size([1, 2, 16]))

        With the weights of an nn.GRU, and with other equations:

        >>> old = nn.GRU(8, 16, batch_first=True)
        >>> layer.load_state_dict(old.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(2, 5, 8)
        >>> torch.testing.assert_close(layer(x), old(x))
        >>> trigru.GRU(8, 16, variant="cho", memory="recompute")
        trigru.GRU(8, 16, variant='cho', memory='recompute')
    """

    variant: Variant = "torch"  # of modules that were nn.GRU when they were pickled, and so on
    memory: Memory = "keep"
    schedule: ScheduleName = "auto"  # until __init__ is through
    _reverse = False  # a single direction from the last step to the first
    _options: Options | None = None
    _blocks: Blocks | None = None
    _normalises = False
    _learns_state = False
    h0: nn.Parameter  # where it learns one
    zoneout = as_attribute("zoneout")
    recurrent_dropout = as_attribute("recurrent_dropout")
    weight_dropout = as_attribute("weight_dropout")
    clip = as_attribute("clip")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: Variant = "torch",
        schedule: ScheduleName = "auto",
        memory: Memory = "keep",
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        clip: float | None = None,
        num_heads: int = 1,
        groups: int = 1,
        norm: Literal["layer"] | None = None,
        learn_initial_state: bool = False,
        proj_size: int | None = None,
    ) -> None:
        if proj_size is not None:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if not isinstance(bidirectional, bool):
            raise TypeError(f"bidirectional should be of type bool, got: {type(bidirectional).__name__}")
        check_variant(variant)
        check_schedule(schedule)
        check_memory(memory)
        options = Options(zoneout, recurrent_dropout, weight_dropout, clip)
        blocks = Blocks.of(num_heads, groups, input_size, hidden_size, 2 if bidirectional else 1)
        if norm not in (None, "layer"):
            raise ValueError(f"norm: expected None or 'layer', got {norm!r}")
        if not isinstance(learn_initial_state, bool):
            raise TypeError(f"learn_initial_state: expected a bool, got {type(learn_initial_state).__name__}")
        if blocks is not None:
            self._blocks = blocks
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.variant = variant
        self.schedule = schedule
        self.memory = memory
        if options != NO_OPTIONS:
            self._options = options
        if blocks is not None:
            blocks.narrow(self)
            self.reset_parameters()
        if norm is not None:
            self._normalises = True
            for names in self._all_weights:
                like = getattr(self, names[0])
                self.register_parameter(_gain_of(names), nn.Parameter(like.new_ones(2, 3 * hidden_size)))
        if learn_initial_state:
            self._learns_state = True
            place = self._parameters["weight_ih_l0"]
            assert place is not None
            self.h0 = nn.Parameter(place.new_zeros(len(self._all_weights), hidden_size))
        self.flatten_parameters()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: without what `trigru.tap` has put there, which is of this module alone."""
        state: dict[str, Any] = super().__getstate__()
        state.pop("_prepared", None)
        return state

    def reset_parameters(self) -> None:
        """As in `nn.GRU`; the learned initial state becomes zeros again, and gains 1. With one seed the values are
        those of a new module."""
        if self._blocks is not None and "variant" not in self.__dict__:
            return  # called by nn.RNNBase's constructor: the weights are yet to lose columns
        self._draw({"h0": 0.0, **dict.fromkeys(self._gains(), 1.0)})

    def flatten_parameters(self) -> None:
        """With schedule="cudnn" as in `nn.GRU`: the parameters move into the one buffer that cuDNN reads, which spares
        a copy of them at each call. Otherwise it does nothing: no kernel here needs them so."""
        if self.schedule == "cudnn":
            lay_flat(self)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, `nn.GRU`'s first."""
        text = super().extra_repr()
        if self.variant != "torch":
            text += f", variant={self.variant!r}"
        if self.schedule != "auto":
            text += f", schedule={self.schedule!r}"
        if self.memory != "keep":
            text += f", memory={self.memory!r}"
        return text + "".join(f", {name}={value!r}" for name, value in self.further().items())

    def further(self) -> dict[str, Any]:
        """The arguments that differ from their defaults, of those that say what steps do beside the equations, how the
        weights lie and where a sequence begins."""
        found: dict[str, Any] = {}
        for options in (self._options, self._blocks):
            found |= {} if options is None else options.named()
        if self._normalises:
            found["norm"] = "layer"
        if self._learns_state:
            found["learn_initial_state"] = True
        return found

    def _gains(self) -> list[str]:
        """Names of the gains of normalised products, of each layer and direction; none without a norm."""
        return [_gain_of(names) for names in self._all_weights] if self._normalises else []

    if TYPE_CHECKING:  # nn.Module's takes and gives anything

        @overload
        def __call__(
            self, input: Tensor, hx: Tensor | None = None, **arguments: Unpack[Arguments]
        ) -> tuple[Tensor, Tensor]: ...
        @overload
        def __call__(
            self, input: PackedSequence, hx: Tensor | None = None, **arguments: Unpack[Arguments]
        ) -> tuple[PackedSequence, Tensor]: ...
        def __call__(self, input: Any, hx: Any = None, **arguments: Any) -> Any: ...

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, **arguments: Unpack[Arguments]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, **arguments: Unpack[Arguments]
    ) -> tuple[PackedSequence, Tensor]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        reset: Rows | None = None,  # not by keyword alone: TorchScript's ONNX exporter passes defaults by position
        reset_state: Rows | None = None,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        decay: Rows | None = None,
        attention: Rows | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """See the class."""
        given = per_call(reset, reset_state, lengths, mask, decay, attention)
        if isinstance(input, fx.Proxy):
            return traced(self, input, hx, **({} if given is None else given._asdict()))
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            records, finish = self._prepared(data, hx, batch_sizes, sorted_indices, given)
            output, h_n = operators.gru(*records)
            output = output if finish is None else finish(output)
            return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), self.permute_hidden(
                h_n, unsorted_indices
            )
        refuse_nested(input)
        asked = None
        if given is None and not torch.compiler.is_compiling() and (weights := self._bare()) is not None:
            if input.is_cpu:
                found = self._directly(input, hx, weights)
            else:
                asked = self._asked(input, hx, weights)
                found = None if asked is None else operators.gru_again(asked)
            if found is not None:
                return found
        records, finish = self._prepared(input, hx, given=given, zeros_later=asked is not None)
        output, h_n = operators.gru(*records, asked)
        if finish is not None:
            output = finish(output)
        return (output.squeeze(1), h_n.squeeze(1)) if input.dim() == 2 else (output, h_n)

    def _bare(self) -> list[Tensor] | None:
        """The weights of a module of the equations alone, where all are parameters and nobody listens; else None."""
        if self._options is not None or self._blocks is not None or "_prepared" in self.__dict__:  # by trigru.tap
            return None
        if self._learns_state or self._normalises:
            return None
        parameters = self._parameters
        try:
            return [parameters[name] for names in self._all_weights for name in names]  # type: ignore[misc]
        except KeyError:  # a parametrized weight is computed where it is looked up, which may do more: once in a call
            return None

    def _directly(self, input: Tensor, hx: Tensor | None, weights: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Of a call on a CPU that torch's own GRU serves; see `operators.direct`."""
        return direct(self._layer(), weights, input, hx) if self.variant == "torch" else None

    def _asked(self, input: Tensor, hx: Tensor | None, weights: list[Tensor]) -> operators.Asked | None:
        """What `operators.gru_again` takes of a call on a GPU; None where none is known by that."""
        if not input.is_cuda or input.dim() != 3:
            return None
        zeros, tensors = None, [input, *weights]
        if hx is None:
            zeros = len(self._all_weights), input.shape[0 if self.batch_first else 1], self.hidden_size
        else:
            tensors.insert(1, hx)
        key = operators.key_of(_STATIC(self), input, zeros)
        return None if key is None else (key, tensors, zeros)

    def _prepared(
        self,
        input: Tensor,
        hx: Tensor | None,
        batch_sizes: Tensor | None = None,
        sorted_indices: Tensor | None = None,
        given: PerCall | None = None,
        zeros_later: bool = False,
    ) -> tuple[Records, Finish | None]:
        """What a call of the module is: the records, checked, as nn.GRU checks, and cast, where autocast is on.
        And what its output goes through. zeros_later: where there is no hx, it may be `Call.zeros`."""
        weights: Sequence[Tensor] = self._weights()
        batched = True
        if batch_sizes is not None:
            if sorted_indices is not None:
                batch = sorted_indices.shape[0]
            elif hx is not None and torch.compiler.is_compiling():
                batch = hx.shape[1]  # what batch_sizes holds is unknown there; the operator checks
            else:
                batch = first_of(batch_sizes)
            self._check(input, hx, 2, batch, weights[0])
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
        else:
            dims = input.dim()
            if dims not in (2, 3):
                raise ValueError(f"GRU: Expected input to be 2D or 3D, got {dims}D instead")
            batched = dims == 3
            if hx is not None:
                if hx.dim() != dims:
                    kind = "batched 3-D" if batched else "unbatched 2-D"
                    raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {hx.dim()}-D tensor")
                if not batched:
                    hx = hx.unsqueeze(1)
            if not batched:
                input = input.unsqueeze(1)
            batch = input.shape[0 if batched and self.batch_first else 1]
            self._check(input, hx, 3, batch, weights[0])
        layer = self._layer(batched)
        if layer.num_heads > 1 and is_exported():
            layer, weights = replace(layer, num_heads=1), whole_weights(layer, weights)
        initial = self._weight("h0").to(input.dtype) if self._learns_state else None
        if hx is None and initial is not None:
            hx = initial.unsqueeze(1).expand(layer.parts, batch, self.hidden_size)
        zeros_later = zeros_later and hx is None
        if hx is None:
            hx = (input.new_empty if zeros_later else input.new_zeros)(layer.parts, batch, self.hidden_size)
        call = Call(input, hx, batch_sizes, gain=self._gain(), zeros=zeros_later)
        finish = None
        if given is not None or self._options is not None:
            (layer, weights, call), finish = prepare(
                Records(layer, weights, call),
                given or PerCall(),
                self._options or NO_OPTIONS,
                training=self.training,
                batched=batched,
                sorted_indices=sorted_indices,
                initial=initial,
            )
        if torch._C._is_any_autocast_enabled():
            weights, call = cast(weights, call)
        if torch._C._get_tracing_state() is None:  # else the operator checks, at each run of what was traced
            check(layer, weights, call)
        return Records(layer, weights, call), finish

    def _layer(self, batched: bool = True) -> Layer:
        """What is static of it, but for what steps do beside the equations. batched: of the input."""
        return layer_of(
            self.input_size,
            self.hidden_size,
            num_layers=self.num_layers,
            bias=self.bias,
            batch_first=batched and self.batch_first,
            dropout=float(self.dropout) if self.training and self.num_layers > 1 else 0.0,
            bidirectional=self.bidirectional,
            reverse=self._reverse,
            variant=self.variant,
            schedule=self.schedule,
            memory=self.memory,
            num_heads=1 if self._blocks is None else self._blocks.num_heads,
        )

    def _records(self, *call: Any, **arguments: Any) -> Records:
        """The records of `_prepared`."""
        return self._prepared(*call, **arguments)[0]

    def _check(self, input: Tensor, hx: Tensor | None, dims: int, batch: int, weight: Tensor) -> None:
        """Raise what nn.GRU raises, in its words, where input or hx does not fit; `check` sees to the rest."""
        if input.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
        if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
            )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        if input.device != weight.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, "
                f"found input tensor at {input.device} and parameter tensor at {weight.device}"
            )
        if hx is None:
            return
        expected = (len(self._all_weights), batch, self.hidden_size)
        if hx.shape != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.shape)}")
        if hx.device != input.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, "
                f"found input tensor at {input.device} and hidden tensor hx at {hx.device}"
            )
        if hx.dtype != input.dtype and not torch._C._is_any_autocast_enabled():
            raise RuntimeError(f"hx: expected dtype {input.dtype} as input, got {hx.dtype}")

    def _weights(self) -> list[Tensor]:
        """w_ih, w_hh (of heads one's columns) and the biases of each layer and direction, looked up by name so that
        parametrizations are seen, once in a call, for one may step on where it is."""
        weights = [self._weight(name) for names in self._all_weights for name in names]
        return weights if self._blocks is None else self._blocks.ungrouped(weights, len(self._all_weights[0]))

    def _gain(self) -> Tensor | None:
        """Of normalised products, (directions * num_layers, 2, 3 * hidden_size)."""
        return torch.stack([self._weight(name) for name in self._gains()]) if self._normalises else None

    def _weight(self, name: str) -> Tensor:
        parameters = self._parameters  # where attributes of this kind are found last, and most weights are
        return expect_tensor(name, parameters[name] if name in parameters else getattr(self, name))
