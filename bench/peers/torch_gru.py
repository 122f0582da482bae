"""nn.GRU and nn.GRUCell: cuDNN on a GPU, padded or packed."""

from __future__ import annotations

import copy

from torch import nn

from ..cases.case import Case, Inputs
from ..measuring.side import Side, side_of_module
from .adapter import Peer


def side(case: Case, source: nn.Module, inputs: Inputs) -> Side:
    """The source of the weights itself, in a copy."""
    module = copy.deepcopy(source)
    if isinstance(module, nn.GRU):
        module.flatten_parameters()  # a copy has its weights apart, and cuDNN would gather them at every call
    return side_of_module("nn.GRU", module, inputs)


PEER = Peer("nn.GRU", lambda case: None, side)
