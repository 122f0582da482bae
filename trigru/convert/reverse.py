"""`ReverseGRU`: one layer from the last step to the first, which nn.GRU has only as half of both directions."""

from __future__ import annotations

from typing import Any

from ..modules import GRU


class ReverseGRU(GRU):
    """One layer from the last step to the first; outputs stay at their own step's place (`trigru.gru(reverse=True)`).

    What an ONNX node with direction="reverse" computes. Arguments, inputs, outputs, state_dict and errors are those of
    `trigru.GRU`.

    Raises:
        ValueError: num_layers other than 1, or bidirectional.

    Example:
        >>> backwards, forwards = ReverseGRU(5, 7), trigru.GRU(5, 7)
        >>> forwards.load_state_dict(backwards.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(4, 2, 5)
        >>> torch.testing.assert_close(backwards(x)[0], forwards(x.flip(0))[0].flip(0))
    """

    _reverse = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.num_layers != 1:
            raise ValueError(f"num_layers: expected 1 in a reverse GRU, got {self.num_layers}")
        if self.bidirectional:
            raise ValueError("bidirectional: expected False in a reverse GRU, got True")
