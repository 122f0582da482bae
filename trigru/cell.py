"""`trigru.GRUCell`: one step, with parameters, shapes, results and errors as nn.GRUCell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import layer_norm, linear

from .checks import expect_tensor
from .functional import gru_cell
from .layer import Variant
from .leaf import Leaf, traced
from .planning.invariant import is_on, refuse
from .reference import check_variant
from .schedules import single

_DREAMER_EPS, _DREAMER_BIAS = 1e-3, -1.0


class GRUCell(Leaf, nn.RNNCellBase):
    """One step of a GRU: `nn.GRUCell` with a choice of equations.

    Args:
        input_size, hidden_size, bias, device, dtype: as `nn.GRUCell`.
        variant: "torch", "cho" or "chung"; see `trigru.reference`. Or "dreamer", the cell of Dreamer's world models
            (Hafner et al. 2021), which goes step by step because its users sample between steps:

                r, n, u = W_i x + W_h h + b, with norm="layer" normalised together, with a gain and a shift of 3H each
                r = sigmoid(r)    n = tanh(r * n)    u = sigmoid(u - 1)    h' = u * n + (1 - u) * h
        norm: "layer" for variant "dreamer", with `norm_weight` and `norm_bias` (3 * hidden_size,) and an eps of 1e-3 as
            there; None for none.

    Inputs: input, hx
        - input: (batch, input_size) or (input_size,).
        - hx: (batch, hidden_size) or (hidden_size,); zeros if None.

    Outputs: state
        - state: the next one, as hx.

    Raises:
        ValueError, RuntimeError: as `nn.GRUCell`; ValueError for an unknown variant, and a norm that it has not.

    Example:
        >>> cell = trigru.GRUCell(8, 16)
        >>> cell(torch.randn(2, 8)).shape
        torch.Size([2, 16])
    """

    variant: Variant | Literal["dreamer"] = "torch"  # of cells that were nn.GRUCell when they were pickled

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: Variant | Literal["dreamer"] = "torch",
        norm: Literal["layer"] | None = None,
    ) -> None:
        if variant != "dreamer":
            check_variant(variant)
        if norm not in ((None, "layer") if variant == "dreamer" else (None,)):
            raise ValueError(f"norm: expected None, or 'layer' for variant 'dreamer', got {norm!r}")
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.variant = variant
        if norm is not None:
            self.norm_weight = nn.Parameter(self.weight_ih.new_ones(3 * hidden_size))
            self.norm_bias = nn.Parameter(self.weight_ih.new_zeros(3 * hidden_size))

    def reset_parameters(self) -> None:
        """As in `nn.GRUCell`; a norm's gain becomes 1 again, its shift 0."""
        self._draw({"norm_weight": 1.0, "norm_bias": 0.0})

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, `nn.GRUCell`'s first."""
        text = super().extra_repr()
        if self.variant != "torch":
            text += f", variant={self.variant!r}"
        return f"{text}, norm='layer'" if "norm_weight" in self._parameters else text

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """See the class."""
        if isinstance(input, fx.Proxy):
            return traced(self, input, hx)
        if hx is not None and self.variant == "torch" and self._is_torchs(input, hx):
            return torch.gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        weights = self._weights()
        x, h = self._rows(input, hx, weights[0])
        if self.variant == "dreamer":
            h = self._dreamer(x, h, *weights)
        else:
            h = gru_cell(x, h, *weights, variant=self.variant)
        return h if input.dim() == 2 else h.squeeze(0)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Each looked up once in a call, for a parametrization may step on where it is."""
        w_ih, w_hh = (expect_tensor(name, getattr(self, name)) for name in ("weight_ih", "weight_hh"))
        return w_ih, w_hh, self.bias_ih, self.bias_hh

    def _rows(self, input: Tensor, hx: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Input and state with a batch. weight: of the input's product. Raises what nn.GRUCell raises where one does
        not fit."""
        for name, tensor in (("input", input), ("hidden", hx)):
            if tensor is not None and tensor.dim() not in (1, 2):
                raise ValueError(f"GRUCell: Expected {name} to be 1D or 2D, got {tensor.dim()}D instead")
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            h = x.new_zeros(x.shape[0], self.hidden_size, layout=torch.strided)
        else:
            if hx.dim() != input.dim():
                raise RuntimeError(f"hx: expected {input.dim()} dimensions as input, got {hx.dim()}")
            h = hx if batched else hx.unsqueeze(0)
            self._check_state(x, h)
        if x.shape[1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}")
        if x.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
            # A ValueError in nn.GRU, but not in nn.GRUCell.
            raise RuntimeError(f"input: expected the weights' dtype {weight.dtype}, got {x.dtype}")
        return x, h

    def _is_torchs(self, x: Tensor, h: Tensor) -> bool:
        """Whether a call is what nn.GRUCell's is, its refusals too: a step of a small cell takes little longer than
        the way through `gru_cell`."""
        if torch.compiler.is_compiling() or is_on() or not x.is_cpu or x.dim() != 2 or h.dim() != 2:
            return False
        size = self.hidden_size
        return 3 * x.shape[0] * size * (self.input_size + size) < single.MULTIPLICATIONS

    def _dreamer(
        self, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
    ) -> Tensor:
        """The equations of variant "dreamer"."""
        refuse("variant 'dreamer'")
        parts = linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)
        if "norm_weight" in self._parameters:
            parts = layer_norm(parts, parts.shape[-1:], self.norm_weight, self.norm_bias, _DREAMER_EPS)
        r, n, u = parts.chunk(3, -1)
        n, u = torch.tanh(torch.sigmoid(r) * n), torch.sigmoid(u + _DREAMER_BIAS)
        return h + u * (n - h)

    def _check_state(self, x: Tensor, h: Tensor) -> None:
        """Raise what nn.GRUCell raises where the state does not fit the input."""
        if h.shape[0] != x.shape[0]:
            raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match hidden0 batch size {h.shape[0]}")
        if h.shape[1] != self.hidden_size:
            raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {h.shape[1]}, expected {self.hidden_size}")
        if h.dtype != x.dtype and not torch._C._is_any_autocast_enabled():
            raise RuntimeError(f"hx: expected dtype {x.dtype} as input, got {h.dtype}")
