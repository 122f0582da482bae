"""How a case is measured: sides to compare, checked first, then timed in pairs, under recorded conditions.

Nothing here chooses cases or prints results."""
