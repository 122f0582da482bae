"""Weights of other libraries as trigru modules, and back: `from_x(...)` gives a module, `to_x(module)` x's arrays.

Values in, values out, of the same dtype: modules and arrays are new and share no memory with what they were made from.
What a library computes that no variant of trigru does raises ValueError, and so does an array of the wrong shape, by
name. Nothing here needs the other library, but `from_onnx_model`, which reads models with onnx. Needs numpy.

    import trigru.convert

`docs/convert.md` has the table of libraries, variants and what is exact.
"""

from .equinox import from_equinox, to_equinox
from .flashrnn import from_flashrnn, to_flashrnn
from .flax import from_flax_linen, from_flax_nnx, to_flax_linen, to_flax_nnx
from .grouped import from_deepfilternet, from_gtcrn, grouped_order, to_deepfilternet, to_gtcrn
from .grud import from_grud, to_grud
from .haste import from_haste, to_haste
from .keras import from_keras, from_keras_layer, to_keras
from .lecture import from_concatenated, to_concatenated
from .lfads import from_lfads, to_lfads
from .modules import from_cell, join_directions, split_directions, split_layers, stack_layers, to_cell, to_variant
from .onnx import from_onnx, from_onnx_model, to_onnx
from .reverse import ReverseGRU
from .torchrl import from_torchrl, to_torchrl

__all__ = [
    "ReverseGRU",
    "from_cell",
    "from_concatenated",
    "from_deepfilternet",
    "from_equinox",
    "from_flashrnn",
    "from_flax_linen",
    "from_flax_nnx",
    "from_grud",
    "from_gtcrn",
    "from_haste",
    "from_keras",
    "from_keras_layer",
    "from_lfads",
    "from_onnx",
    "from_onnx_model",
    "from_torchrl",
    "grouped_order",
    "join_directions",
    "split_directions",
    "split_layers",
    "stack_layers",
    "to_cell",
    "to_concatenated",
    "to_deepfilternet",
    "to_equinox",
    "to_flashrnn",
    "to_flax_linen",
    "to_flax_nnx",
    "to_grud",
    "to_gtcrn",
    "to_haste",
    "to_keras",
    "to_lfads",
    "to_onnx",
    "to_torchrl",
    "to_variant",
]
