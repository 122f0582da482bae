"""Errors that kernels raise on the host; importable without Triton."""


class KernelTimeout(RuntimeError):
    """A program of a persistent kernel waited in vain for the others; the results of that launch are not valid."""


class DoesNotFit(RuntimeError):
    """The programs of a launch that wait for each other are more than can be on the device together, as where others
    share the GPU and this process has a part of it only. Nothing was started."""
