"""Where rows of steps begin."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from trigru.kernels.steps import Steps


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40).map(lambda counts: sorted(counts, reverse=True)))
def test_offsets_computed_without_a_copy_from_the_host(batch_sizes):
    steps, cpu = Steps.of_batch_sizes(batch_sizes), torch.device("cpu")
    assert steps.computed_offsets(cpu).tolist() == list(steps.offsets)
    assert steps.row_offsets(cpu).tolist() == list(steps.offsets)
