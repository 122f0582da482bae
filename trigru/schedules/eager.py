"""The hand-written schedule in plain torch operations: any device, any floating dtype, no autograd.

Steps are worked through in chunks whose buffers stay in cache. Everything without a recurrence (the input's projection,
the element-wise factors of the derivatives, the products for the weights) is done once a chunk, so that a step is left
with the few operations that must wait for the step before.

A chunk's rows are those of its steps, one after another, as in PackedSequence.data; a row holds one plane of
hidden_size columns a gate:

    "torch"         forward [an r z n], backward [d_an dr dz dn]: the recurrent product owns the first three planes, the
                    input's projection the last three, so each is one product and nothing is concatenated
    "cho", "chung"  forward [r z n], backward [dr dz dn]

Heads that are many and large enough (`heads_apart`) have their recurrent products batched, see `eager_products.Heads`.

In 16 bits the arithmetic is in float32, and the reserve keeps of r, z and n what eager_kept.py says.
"""

from .eager_backward import backward
from .eager_forward import forward

__all__ = ["backward", "forward"]
