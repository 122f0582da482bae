"""`trigru.convert` and `trigru.onnx` after `import trigru`, which does not import them itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trigru


def test_rooms_are_imported_at_their_first_use():
    code = """
import sys
import trigru
rooms = {"trigru.convert", "trigru.onnx"}
assert not rooms & set(sys.modules), rooms & set(sys.modules)
assert {"convert", "onnx", "GRU", "swap"} <= set(dir(trigru))
assert not rooms & set(sys.modules), "dir() imports"
assert not hasattr(trigru, "nothing") and not rooms & set(sys.modules)
assert callable(trigru.convert.from_keras) and "trigru.onnx" not in sys.modules
assert callable(trigru.onnx.translations)
assert rooms <= set(sys.modules) and trigru.convert is sys.modules["trigru.convert"]
assert not {"onnx", "onnxscript", "keras", "torchrl", "tensordict"} & set(sys.modules)
sys.modules["torchrl"] = None  # as where it is not installed
try:
    import trigru.rl
except ImportError as error:
    assert "pip install torchrl" in str(error), error
else:
    raise AssertionError("trigru.rl was imported")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trigru' has no attribute 'lstm'"):
        trigru.lstm  # noqa: B018
