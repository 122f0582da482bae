"""`trigru.rl.GRUModule`: TorchRL's GRUModule with a `trigru.GRU`, which takes episodes that end within a sequence.

Needs TorchRL: pip install torchrl. `import trigru` imports neither it nor this room: `import trigru.rl`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import gru
from .modules import GRU

try:
    from tensordict import TensorDictBase
    from tensordict.nn import dispatch
    from torchrl.modules import GRUModule as _GRUModule
except ImportError as error:
    raise ImportError("trigru.rl needs TorchRL: pip install torchrl") from error


class GRUModule(_GRUModule):  # type: ignore[misc]  # of a library without types
    """TorchRL's GRUModule, with a `trigru.GRU` that is called once for all episodes of a batch.

    Keys, shapes, the state_dict and the results are those of `torchrl.modules.GRUModule` with recurrent_backend="pad":
    in recurrent mode an episode begins where `is_init` is True, from the state stored there, and the states that come
    out are those at the ends of episodes, zeros elsewhere; else a step begins from zeros where `is_init` is. TorchRL
    cuts the batch into episodes and pads them to the longest; here nothing is cut, and shapes are as the batch's.

    Args:
        input_size, hidden_size, num_layers, bias, dropout, bidirectional, device: as `trigru.GRU`. batch_first: True.
        in_key, in_keys, out_key, out_keys, default_recurrent_mode: as in TorchRL.
        gru: a `trigru.GRU`, batch-first, in place of the arguments that make one.
        options: further arguments of `trigru.GRU`. With learn_initial_state, episodes begin from its `h0`.

    Raises:
        ValueError, TypeError: as TorchRL and `trigru.GRU`; a `gru` that is none of trigru's, or beside other arguments.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import set_recurrent_mode
        >>> import trigru.rl
        >>> module = trigru.rl.GRUModule(3, 8, in_key="observation", out_key="features")
        >>> is_init = torch.zeros(4, 20, 1, dtype=torch.bool)
        >>> is_init[1, 13] = True
        >>> rollout = TensorDict({"observation": torch.randn(4, 20, 3), "is_init": is_init}, [4, 20])
        >>> with set_recurrent_mode(True):
        ...     module(rollout)["features"].shape
        torch.Size([4, 20, 8])

        From a module of TorchRL's:

        >>> from torchrl.modules import GRUModule
        >>> theirs = GRUModule(3, 8, in_key="observation", out_key="features")
        >>> ours = trigru.rl.GRUModule(
        ...     gru=trigru.convert.from_torchrl(theirs), in_keys=theirs.in_keys, out_keys=theirs.out_keys
        ... )
    """

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int | None = None,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        in_key: Any = None,
        in_keys: Any = None,
        out_key: Any = None,
        out_keys: Any = None,
        device: torch.device | str | None = None,
        gru: GRU | None = None,
        default_recurrent_mode: bool | None = None,
        **options: Any,
    ) -> None:
        if gru is None:
            if not batch_first:
                raise ValueError("batch_first: expected True, as TorchRL's, got False")
            gru = GRU(
                input_size,  # type: ignore[arg-type]  # it looks
                hidden_size,  # type: ignore[arg-type]
                num_layers,
                bias,
                True,
                dropout,
                bidirectional,
                device,
                **options,
            )
        elif not isinstance(gru, GRU):
            raise TypeError(
                f"gru: expected a trigru.GRU, got {type(gru).__name__}: trigru.convert.from_torchrl(gru) makes one"
            )
        elif options or input_size is not None or hidden_size is not None:
            raise ValueError("gru: expected alone, got other arguments of a trigru.GRU beside it")
        super().__init__(
            gru=gru,
            in_key=in_key,
            in_keys=in_keys,
            out_key=out_key,
            out_keys=out_keys,
            default_recurrent_mode=default_recurrent_mode,
        )

    def make_python_based(self) -> NoReturn:
        """Refused: TorchRL's own loop would take the place of the `trigru.GRU`."""
        raise NotImplementedError("make_python_based: expected of torchrl.modules.GRUModule, got trigru.rl.GRUModule")

    def make_cudnn_based(self) -> NoReturn:
        """Refused: an nn.GRU would take the place of the `trigru.GRU`, whose schedule="cudnn" is what is meant."""
        raise NotImplementedError(
            'make_cudnn_based: expected of torchrl.modules.GRUModule; here gru.schedule = "cudnn"'
        )

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Put the outputs and the states into the tensordict, whose last dimension in recurrent mode is time."""
        shape = tensordict.shape
        if not self.recurrent_mode:
            shape = torch.Size([*shape, 1])
        elif not shape:
            raise ValueError(
                "recurrent_mode: expected a tensordict with a dimension for time, got one without dimensions"
            )
        steps, size = shape[-1], self.gru.hidden_size
        value = tensordict[self.in_keys[0]]
        value = value.reshape(-1, steps, value.shape[-1])
        is_init = tensordict[self.in_keys[2]].reshape(-1, steps)
        hidden = tensordict.get(self.in_keys[1], None)
        if hidden is None:
            hidden = value.new_zeros(()).expand(*value.shape[:2], len(self.gru._all_weights), size)
        hidden = hidden.reshape(*value.shape[:2], -1, size)
        if self.gru._learns_state or not self.recurrent_mode:
            first = self.gru.h0 if self.gru._learns_state else 0
            hidden = torch.where(is_init[..., None, None], first, hidden)
        if self.recurrent_mode:
            output, states = self._episodes(value.transpose(0, 1), hidden.permute(1, 2, 0, 3), is_init.t())
        else:
            output, h_n = self.gru(value, hidden[:, 0].transpose(0, 1))
            states = h_n.transpose(0, 1)
        tensordict.set(self.out_keys[0], output.reshape(*tensordict.shape, -1))
        tensordict.set(self.out_keys[1], states.reshape(*tensordict.shape, -1, size))
        return tensordict

    def _episodes(self, x: Tensor, states: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """One run over all steps, layer by layer, as the states of each layer are wanted at the episodes' ends.

        x: (T, B, I). states: (T, L * D, B, H), of which those where episodes begin are taken. reset: (T, B).

        Returns:
            The last layer's outputs (B, T, D * H), and (B, T, L * D, H), zeros but for the last states of episodes.
        """
        module = self.gru
        steps = torch.arange(len(x), device=x.device).unsqueeze(1)
        first = torch.where(reset, steps, 0).cummax(0).values.unsqueeze(-1).expand(*reset.shape, states.shape[-1])
        ends = torch.cat([reset[1:], torch.ones_like(reset[:1])]).unsqueeze(-1)
        directions = 2 if module.bidirectional else 1
        width = len(module._all_weights[0])
        weights = [module._weight(name) for names in module._all_weights for name in names]
        gain = module._gain()
        outputs: list[Tensor] = []
        finals = []
        for part in range(len(module._all_weights)):
            back = part % directions == 1
            begin = states[:, part]
            if back:  # begins at the episode's end, from the state stored at its beginning
                begin = begin.gather(0, first)
            output, _ = gru(
                x,
                begin[-1 if back else 0],
                *weights[part * width : (part + 1) * width],
                reset=reset,
                reset_state=begin,
                reverse=back,
                gain=None if gain is None else gain[part],
                **self._options_of_a_layer(),
            )
            last = output.gather(0, first) if back else output
            finals.append(torch.where(ends, last, 0))
            outputs.append(output)
            if len(outputs) == directions:
                x, outputs = torch.cat(outputs, -1), []
                if module.dropout and part + 1 < len(module._all_weights):
                    x = F.dropout(x, module.dropout, module.training)
        return x.transpose(0, 1), torch.stack(finals, 2).transpose(0, 1)

    def _options_of_a_layer(self) -> dict[str, Any]:
        module = self.gru
        further = module.further()
        further = {name: value for name, value in further.items() if name not in ("norm", "learn_initial_state")}
        ways = {"variant": module.variant, "schedule": module.schedule, "memory": module.memory}
        return {**ways, **further, "training": module.training}
