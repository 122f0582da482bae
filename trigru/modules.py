"""`trigru.GRU` and `trigru.GRUCell`: parameters, shapes, results and errors as nn.GRU and nn.GRUCell."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .functional import gru
from .plan import check_schedule
from .reference import check_variant


class GRU(nn.RNNBase):
    """A multi-layer GRU: `nn.GRU` with a choice of equations and of schedule.

    Parameters, their names, shapes and initial values, state_dict, results and errors are those of `nn.GRU`, so weights
    load both ways. It is no subclass of `nn.GRU`, because torch.compile refuses those.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as `nn.GRU`.
        variant: "torch" (nn.GRU's equations), "cho" or "chung"; see `trigru.reference`.
        schedule: "auto", or a schedule by name; see `trigru.explain`.

    Inputs: input, hx
        input: (seq_len, batch, input_size), (batch, seq_len, input_size) with batch_first, unbatched (seq_len,
            input_size), or a PackedSequence.
        hx: (directions * num_layers, batch, hidden_size), or (directions * num_layers, hidden_size) unbatched; zeros if
            None.

    Outputs: output, h_n
        output: as input, with directions * hidden_size features. h_n: as hx.

    Raises:
        ValueError, TypeError, RuntimeError: as `nn.GRU`; ValueError for an unknown variant or schedule; RuntimeError
            for a schedule by name that cannot run here.

    Example:
        >>> layer = trigru.GRU(8, 16, batch_first=True)
        >>> output, h_n = layer(torch.randn(2, 5, 8))
        >>> output.shape, h_n.shape
        (torch.Size([2, 5, 16]), torch.Size([1, 2, 16]))
    """

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
        variant: str = "torch",
        schedule: str = "auto",
    ) -> None:
        check_variant(variant)
        check_schedule(schedule)
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

    def flatten_parameters(self) -> None:
        """Accepted as in `nn.GRU`; does nothing, since no kernel here needs the weights in one buffer."""

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, `nn.GRU`'s first."""
        text = super().extra_repr()
        if self.variant != "torch":
            text += f", variant={self.variant!r}"
        if self.schedule != "auto":
            text += f", schedule={self.schedule!r}"
        return text

    def forward(self, input, hx=None):  # type: ignore[no-untyped-def]
        """See the class."""
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            hx = (
                self._initial_state(data, int(batch_sizes[0]))
                if hx is None
                else self.permute_hidden(hx, sorted_indices)
            )
            self.check_forward_args(data, hx, batch_sizes)
            output, h_n = self._run(data, hx, batch_sizes)
            return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), self.permute_hidden(
                h_n, unsorted_indices
            )

        if input.dim() not in (2, 3):
            raise ValueError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if hx is not None and hx.dim() != input.dim():
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
        batch_dim = 0 if self.batch_first else 1
        if not batched:
            input = input.unsqueeze(batch_dim)
            hx = None if hx is None else hx.unsqueeze(1)
        if hx is None:
            hx = self._initial_state(input, input.shape[batch_dim])
        self.check_forward_args(input, hx, None)
        output, h_n = self._run(input.transpose(0, 1) if self.batch_first else input, hx, None)
        if self.batch_first:
            output = output.transpose(0, 1)
        return (output, h_n) if batched else (output.squeeze(batch_dim), h_n.squeeze(1))

    def _initial_state(self, input: Tensor, batch: int) -> Tensor:
        directions = 2 if self.bidirectional else 1
        return input.new_zeros(directions * self.num_layers, batch, self.hidden_size)

    def _run(self, input: Tensor, hx: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """All layers and directions, time-major."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        states = hx.unbind(0)
        finals: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in suffixes:
                w_ih, w_hh, b_ih, b_hh = self._weights(f"l{layer}{suffix}")
                output, h_n = gru(
                    input,
                    states[len(finals)],
                    w_ih,
                    w_hh,
                    b_ih,
                    b_hh,
                    variant=self.variant,
                    schedule=self.schedule,
                    reverse=suffix == "_reverse",
                    batch_sizes=batch_sizes,
                )
                outputs.append(output)
                finals.append(h_n)
            input = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.dropout and self.training and layer + 1 < self.num_layers:
                input = F.dropout(input, self.dropout)
        return input, torch.stack(finals)

    def _weights(self, suffix: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """w_ih, w_hh, b_ih, b_hh of a layer and direction, looked up by name so that parametrizations are seen."""
        w_ih, w_hh = getattr(self, "weight_ih_" + suffix), getattr(self, "weight_hh_" + suffix)
        if not self.bias:
            return w_ih, w_hh, None, None
        return w_ih, w_hh, getattr(self, "bias_ih_" + suffix), getattr(self, "bias_hh_" + suffix)


class GRUCell(nn.RNNCellBase):
    """One step of a GRU: `nn.GRUCell` with a choice of equations.

    Args:
        input_size, hidden_size, bias, device, dtype: as `nn.GRUCell`.
        variant: "torch", "cho" or "chung"; see `trigru.reference`.

    Inputs: input, hx
        input: (batch, input_size) or (input_size,). hx: (batch, hidden_size) or (hidden_size,); zeros if None.

    Output: the next state, as hx.

    Raises:
        ValueError, RuntimeError: as `nn.GRUCell`; ValueError for an unknown variant.

    Example:
        >>> cell = trigru.GRUCell(8, 16)
        >>> cell(torch.randn(2, 8)).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str = "torch",
    ) -> None:
        check_variant(variant)
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.variant = variant

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, `nn.GRUCell`'s first."""
        text = super().extra_repr()
        return text if self.variant == "torch" else f"{text}, variant={self.variant!r}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """See the class."""
        for name, tensor in (("input", input), ("hidden", hx)):
            if tensor is not None and tensor.dim() not in (1, 2):
                raise ValueError(f"GRUCell: Expected {name} to be 1D or 2D, got {tensor.dim()}D instead")
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        h = x.new_zeros(x.shape[0], self.hidden_size) if hx is None else (hx if batched else hx.unsqueeze(0))
        if input.dtype != self.weight_ih.dtype:  # nn.GRUCell's error here is a RuntimeError, nn.GRU's a ValueError
            raise RuntimeError(f"input: expected the weights' dtype {self.weight_ih.dtype}, got {input.dtype}")
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        h = gru(x.unsqueeze(0), h, *weights, variant=self.variant)[1]
        return h if batched else h.squeeze(0)
