"""What is measured: a case with its inputs, and the grids of cases.

Nothing here runs or times anything."""
