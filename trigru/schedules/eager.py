"""The hand-written schedule in plain torch operations: any device, any floating dtype, no autograd.

Steps are worked through in chunks whose buffers stay in cache. Everything without a recurrence (the input's projection,
the element-wise factors of the derivatives, the products for the weights) is done once a chunk, so that a step is left
with the few operations that must wait for the step before.

A chunk's rows are those of its steps, one after another, as in PackedSequence.data; a row holds one plane of
hidden_size columns a gate:

    "torch"         forward [an r z n]: the recurrent product owns the first three planes, the input's projection the
                    last three, so each is one product and nothing is concatenated. Backward [d_an dr dz] and, made of
                    it once a chunk, [dr dz dn], each in one piece, as oneDNN wants what it multiplies
    "cho", "chung"  forward [r z n], backward [dr dz dn]

Small layers of many sequences have units outermost instead: `eager_turned.py`.

Heads that are many and large enough (`heads_apart`) have their recurrent products batched, see `eager_products.Heads`.

A single step, of a cell, has a file of its own: `single.py`.

In 16 bits the arithmetic is in float32, and the reserve keeps of r, z and n what eager_kept.py says.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..layer import Weights
from . import eager_backward, eager_forward, eager_turned
from .part import Gradients, Part, Run, Upstream


def forward(part: Part, weights: Sequence[Weights], run: Run) -> None:
    """One layer in one direction; the results go where `run` says."""
    if eager_turned.fits(part, weights[0], run):
        eager_turned.forward(part, weights[0], run)
    else:
        eager_forward.forward(part, weights, run)


def backward(part: Part, weights: Sequence[Weights], run: Run, upstream: Upstream) -> Gradients:
    """Back-propagation through time of `forward`.

    Where no gates were kept, those of a chunk are computed again before its steps."""
    if run.gates is not None and eager_turned.fits(part, weights[0], run):
        return eager_turned.backward(part, weights[0], run, upstream)
    return eager_backward.backward(part, weights, run, upstream)
