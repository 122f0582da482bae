"""Which schedule runs, and why: devices, what a step costs on them, the choice.

Knows sizes, dtypes and devices, never tensors of a call: nothing here computes a layer or starts a kernel."""
