"""`trigru.GRUD`: GRU-D (Che et al. 2018), for series with missing values and uneven time between steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .checks import expect, expect_tensor, refuse_nested
from .layer import Memory, ScheduleName, Variant
from .leaf import traced
from .modules import GRU
from .options import lengths_of
from .planning.invariant import refuse


class GRUD(nn.Module):
    """GRU-D: a GRU of one layer whose missing inputs and whose state decay with the time since the last observation.

    The equations are those of Che, Purushotham, Cho, Sontag and Liu, Recurrent Neural Networks for Multivariate Time
    Series with Missing Values, Scientific Reports 8, 2018; m is the mask, d the gaps, x' what was last observed:

        gamma_x = exp(-max(0, w_gamma_x * d + b_gamma_x))    gamma_h = exp(-max(0, W_gamma_h d + b_gamma_h))
        x_hat   = m * x + (1 - m) * (gamma_x * x' + (1 - gamma_x) * mean)
        h       = GRU([x_hat, m], gamma_h * h)

    All but the last line is known before the first step, so the loop is that of `trigru.GRU` with its `decay`.

    Args:
        input_size: of the values (PyPOTS: n_features). hidden_size: of the state (rnn_hidden_size).
        bias, batch_first, device, dtype: as `trigru.GRU`, which is in `gru` and takes 2 * input_size inputs.
        variant: "chung" is the paper's; PyPOTS has "torch".
        mean: (input_size,), the values' mean over the training set (empirical_mean), a buffer; zeros if None.
        schedule, memory, zoneout, recurrent_dropout, weight_dropout, clip, learn_initial_state: as `trigru.GRU`.

    Parameters:
        weight_gamma_h: (hidden_size, input_size). bias_gamma_h: (hidden_size,).
        weight_gamma_x, bias_gamma_x: (input_size,); the paper's W_gamma_x is diagonal.
        gru: those of `trigru.GRU`.

    Inputs: input, mask, gaps, hx
        - input: (seq_len, batch, input_size), (batch, seq_len, input_size) with batch_first, or unbatched (seq_len,
          input_size). What is missing may hold anything, NaN too, and reaches neither results nor gradients.
        - mask: as input, bool or of its dtype: where a value was observed.
        - gaps: as input, or with one feature for all: the time since each feature's last observation before this step;
          `time_gaps` makes them of times. The paper's and PyPOTS's deltas.
        - hx: as `trigru.GRU`; zeros if None.

    Keywords of a call:
        - last: (batch, input_size), unbatched (input_size,): what was last observed before the first step, NaN where
          nothing was; the mean if None. `last_values` gives it for the next call.
        - reset, reset_state, lengths: as `trigru.GRU`. An episode knows nothing of observations before it.

    Outputs: output, h_n as `trigru.GRU`.

    Raises:
        ValueError, TypeError: as `trigru.GRU`.
        RuntimeError: as there; a shape, dtype or device of mask, gaps or last does not fit.

    Example:
        >>> layer = trigru.GRUD(3, 16, batch_first=True)
        >>> values, times = torch.randn(2, 5, 3), torch.rand(2, 5).cumsum(1)
        >>> mask = torch.rand(2, 5, 3) < 0.5
        >>> values[~mask] = torch.nan
        >>> output, h_n = layer(values, mask, layer.time_gaps(times, mask))
        >>> output.shape, bool(output.isfinite().all())
        (torch.Size([2, 5, 16]), True)
    """

    mean: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: Variant = "chung",
        schedule: ScheduleName = "auto",
        memory: Memory = "keep",
        mean: Tensor | None = None,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        clip: float | None = None,
        learn_initial_state: bool = False,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.batch_first = input_size, hidden_size, batch_first
        self.gru = GRU(
            2 * input_size,
            hidden_size,
            1,
            bias,
            batch_first,
            device=device,
            dtype=dtype,
            variant=variant,
            schedule=schedule,
            memory=memory,
            zoneout=zoneout,
            recurrent_dropout=recurrent_dropout,
            weight_dropout=weight_dropout,
            clip=clip,
            learn_initial_state=learn_initial_state,
        )
        like = self.gru._weight("weight_ih_l0")
        self.weight_gamma_h = nn.Parameter(like.new_empty(hidden_size, input_size))
        self.bias_gamma_h = nn.Parameter(like.new_empty(hidden_size))
        self.weight_gamma_x = nn.Parameter(like.new_empty(input_size))
        self.bias_gamma_x = nn.Parameter(like.new_empty(input_size))
        if mean is not None and tuple(expect_tensor("mean", mean).shape) != (input_size,):
            raise RuntimeError(f"mean: expected shape {(input_size,)}, got {tuple(mean.shape)}")
        self.register_buffer("mean", like.new_zeros(input_size) if mean is None else mean.detach().to(like).clone())
        self._reset_decays()

    def reset_parameters(self) -> None:
        """New values: of `gru` as in `nn.GRU`, of the decays as in PyPOTS, uniform up to 1 / sqrt(outputs). `mean`
        stays as it is; after `to_empty` it has to be filled."""
        self.gru.reset_parameters()
        self._reset_decays()

    def _reset_decays(self) -> None:
        for size, parameters in (
            (self.hidden_size, (self.weight_gamma_h, self.bias_gamma_h)),
            (self.input_size, (self.weight_gamma_x, self.bias_gamma_x)),
        ):
            for parameter in parameters:
                nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)

    def extra_repr(self) -> str:
        """The sizes; `gru` shows the rest."""
        return f"{self.input_size}, {self.hidden_size}"

    def forward(
        self,
        input: Tensor,
        mask: Tensor,
        gaps: Tensor,
        hx: Tensor | None = None,
        *,
        last: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        if isinstance(input, fx.Proxy):
            steps = {"last": last, "reset": reset, "reset_state": reset_state, "lengths": lengths}
            return traced(self, input, mask, gaps, hx, **steps)
        observed = self._observed(input, mask)
        expect("gaps", gaps, [tuple(input.shape), (*input.shape[:-1], 1)], [input.dtype], input)
        refuse("GRU-D, whose decays come from a product of torch's,")
        start, ended = self._episodes(input, reset, lengths)
        if ended is not None:
            observed, gaps = observed & ~ended, gaps.masked_fill(ended, 0)
        values = torch.where(observed, input, 0)
        gamma_x = torch.exp(-F.relu(gaps * self.weight_gamma_x + self.bias_gamma_x))
        gamma_h = torch.exp(-F.relu(F.linear(gaps.expand_as(input), self.weight_gamma_h, self.bias_gamma_h)))
        before = self._before(values, observed, start, last)
        x = torch.where(observed, values, gamma_x * before + (1 - gamma_x) * self.mean)
        x = torch.cat([x, observed.to(x.dtype)], -1)
        return self.gru(x, hx, reset=reset, reset_state=reset_state, lengths=lengths, decay=gamma_h)

    def last_values(
        self,
        input: Tensor,
        mask: Tensor,
        last: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """What was last observed at the end of a call, its `last`, `reset` and `lengths` in and the next one's `last`
        out: (batch, input_size), or (input_size,); NaN where nothing was, in the last episode."""
        observed, time = self._observed(input, mask), self._time(input)
        never = input.new_full((), torch.nan) if last is None else self._as_last(input, last)
        start, ended = self._episodes(input, reset, lengths)
        if ended is not None:
            observed = observed & ~ended
        if start is not None:
            never = torch.where(start >= 0, torch.nan, never)
        found = self._locf(torch.where(observed, input, 0), observed, start, never)
        return found.select(time, -1)

    def _episodes(
        self, input: Tensor, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The first step of each step's episode, -1 for the call's; and where sequences have ended. Both with one
        feature, None where nothing is given."""
        time, rows = self._time(input), tuple(input.shape[:-1])
        start = ended = None
        if lengths is not None:
            lengths = lengths_of(lengths, rows[:time] + rows[time + 1 :], rows[time], input)
            ended = _steps(input, time) >= (lengths.unsqueeze(time) if lengths.dim() else lengths).unsqueeze(-1)
        if reset is not None:
            expect("reset", reset, [rows], [torch.bool], input)
            begins = reset.unsqueeze(-1)
            start = _latest(begins if ended is None else begins & ~ended, time, none=-1)
        return start, ended

    def time_gaps(self, times: Tensor, mask: Tensor, reset: Tensor | None = None) -> Tensor:
        """The gaps of a call: at each step the time since the feature's last observation before it, or since the first
        step where there was none.

        Args:
            times: of each step, (seq_len, batch), (batch, seq_len) with batch_first, or (seq_len,) for all sequences.
            mask: as for a call.
            reset: as for a call: then since the episode's first step.

        Returns:
            As mask, of the dtype of times.

        Raises:
            TypeError: an argument that is no tensor.
            RuntimeError: a shape, dtype or device does not fit.
        """
        time = self._time(expect_tensor("mask", mask))
        rows = tuple(mask.shape[:-1])
        expect_tensor("times", times)
        if times.dim() == 1 and mask.dim() == 3 and times.shape[0] == mask.shape[time]:
            times = times.unsqueeze(1 - time).expand(rows)
        if tuple(times.shape) != rows:
            raise RuntimeError(f"times: expected shape {rows}, got {tuple(times.shape)}")
        at = _latest(mask != 0, time)
        first = torch.zeros_like(at.narrow(time, 0, 1))
        at = torch.cat([first, at.narrow(time, 0, at.shape[time] - 1)], time)
        if reset is not None:
            expect("reset", reset, [rows], [torch.bool], mask)
            at = torch.maximum(at, _latest(reset, time).unsqueeze(-1))
        times = times.unsqueeze(-1).expand(at.shape)
        return times - times.gather(time, at)

    def _time(self, x: Tensor) -> int:
        """The dimension of the steps."""
        if x.dim() not in (2, 3):
            raise ValueError(f"GRUD: Expected input to be 2D or 3D, got {x.dim()}D instead")
        return 1 if self.batch_first and x.dim() == 3 else 0

    def _observed(self, input: Tensor, mask: Tensor) -> Tensor:
        refuse_nested(expect_tensor("input", input))
        self._time(input)
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        dtype = self.weight_gamma_h.dtype
        if input.dtype != dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype})")
        expect("mask", mask, [tuple(input.shape)], [torch.bool, input.dtype], input)
        return mask != 0

    def _as_last(self, input: Tensor, last: Tensor) -> Tensor:
        """`last`, with a dimension for the steps."""
        time = self._time(input)
        shape = input.shape[:time] + input.shape[time + 1 :]
        expect("last", last, [tuple(shape)], [input.dtype], input)
        return last.unsqueeze(time)

    def _before(self, values: Tensor, observed: Tensor, start: Tensor | None, last: Tensor | None) -> Tensor:
        """As values: what was last observed up to each step, the mean where nothing was."""
        never = self.mean
        if last is not None:
            never = self._as_last(values, last)
            never = torch.where(never.isnan(), self.mean, never)
            if start is not None:
                never = torch.where(start >= 0, self.mean, never)
        return self._locf(values, observed, start, never)

    def _locf(self, values: Tensor, observed: Tensor, start: Tensor | None, never: Tensor) -> Tensor:
        """What was last observed up to each step, and not before the episode's `start`, -1 for the call's; else
        `never`."""
        time = self._time(values)
        at = _latest(observed, time, none=-1)
        known = at >= 0 if start is None else (at >= 0) & (at >= start)
        return torch.where(known, values.gather(time, at.clamp(min=0)), never)


def _steps(x: Tensor, time: int) -> Tensor:
    """Each step's number, to be broadcast to x."""
    return torch.arange(x.shape[time], device=x.device).reshape([-1 if i == time else 1 for i in range(x.dim())])


def _latest(flags: Tensor, time: int, none: int = 0) -> Tensor:
    """For each step the number of the last one up to it with a flag; `none` where there is none."""
    return torch.where(flags, _steps(flags, time), none).cummax(time).values
