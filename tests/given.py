"""Layers with options, and all that a call may give each step."""

import torch

import trigru


def layer_of(*sizes, **options):
    torch.manual_seed(options.pop("seed", 0))
    return trigru.GRU(*sizes, dtype=torch.float64, **options)


def normalised(*sizes, **options):
    """With gains that are not 1."""
    torch.manual_seed(0)
    module = trigru.GRU(*sizes, norm="layer", **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "gain" in name:
                parameter.uniform_(0.5, 1.5)
    return module


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def arguments_of(shape, width, parts):
    """All that can be given together, time-major, in `shape` (T, B)."""
    steps, batch = shape
    return {
        "reset": torch.rand(steps, batch) < 0.3,
        "reset_state": randn(steps, parts, batch, width // parts),
        "mask": torch.rand(steps, batch) < 0.8,
        "decay": torch.rand(steps, batch, width, dtype=torch.float64),
        "attention": torch.rand(steps, batch, dtype=torch.float64),
    }


def records_of(module, x, hx, **given):
    """Of a module's call, for other ways to run it."""
    return module._prepared(x, hx, given=trigru.options.PerCall(**given))[0]
