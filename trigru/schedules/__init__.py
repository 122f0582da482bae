"""How one layer is computed, in one direction or both: torch operations, or Triton kernels and the products around
them.

A schedule gets what it needs as arguments: it chooses nothing, checks no user's input, and knows no module and no
autograd."""
