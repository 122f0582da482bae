"""Errors that kernels raise on the host; importable without Triton."""


class KernelTimeout(RuntimeError):
    """A program of a persistent kernel waited in vain for the others; the results of that launch are not valid."""
