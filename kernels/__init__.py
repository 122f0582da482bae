"""Triton kernels of the GRU: gate mathematics, schedules, and the code that launches them. Knows nothing of modules."""
