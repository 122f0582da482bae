"""How one layer in one direction is computed: torch operations, or Triton kernels and the products around them.

A schedule gets what it needs as arguments: it chooses nothing, checks no user's input, and knows no module and no
autograd."""
