"""The implementations that trigru is compared with, each in a module of its own."""

from __future__ import annotations

from . import compiled_loop, flags, flashrnn, gru_qat, haste, torch_gru, torchrl
from .adapter import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        torch_gru.PEER,
        compiled_loop.PEER,
        flashrnn.PEER,
        gru_qat.PEER,
        torchrl.PEER,
        haste.PEER,
        flags.PEER,
    )
}

__all__ = ["PEERS", "Peer"]
