"""Tables and sentences for the command line: as Markdown, or as wide as the terminal is."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

NO_TERMINAL = (80, 24)
GAP = "  "


def width() -> int:
    """Columns of the terminal; those of COLUMNS, or 80, where the output is none."""
    return shutil.get_terminal_size(NO_TERMINAL).columns


def markdown(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns; numbers are to the right, whole ones with separators."""
    cells, numeric = _cells(headings, rows)
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(headings))]
    lines = [_justified(line, widths, numeric) for line in cells]
    rule = ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, numeric, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def fitted(headings: Sequence[str], rows: Sequence[Sequence[object]], columns: int | None = None) -> str:
    """A table for people, no wider than `columns` (those of the terminal if None).

    What is the same in all rows is said once, above. A table that is too wide even so becomes a paragraph a row, each
    value after its name: lines break between values, never within a number.
    """
    columns = width() if columns is None else columns
    cells, numeric = _cells(headings, rows)
    shown = list(range(len(headings)))
    said = ""
    if len(rows) > 1:
        same = [i for i in shown if len({line[i] for line in cells[1:]}) == 1]
        if len(same) < len(shown):
            shown = [i for i in shown if i not in same]
            said = _pairs(cells[0], cells[1], same, columns, "in every row: ")
    kept = [[line[i] for i in shown] for line in cells]
    right = [numeric[i] for i in shown]
    widths = [max(len(line[i]) for line in kept) for i in range(len(shown))]
    if sum(widths) + len(GAP) * (len(widths) - 1) <= columns:
        rule = ["-" * w for w in widths]
        lines = [_justified(line, widths, right) for line in kept]
        body = "\n".join(GAP.join(line).rstrip() for line in [lines[0], rule, *lines[1:]])
    else:
        body = "\n".join(_pairs(cells[0], line, shown, columns) for line in cells[1:])
    return f"{said}\n\n{body}" if said else body


def wrapped(text: str, columns: int | None = None, indent: str = "", first: str | None = None) -> str:
    """The text in lines of at most `columns`, broken between words alone; lines after the first are indented."""
    return textwrap.fill(
        text,
        width() if columns is None else columns,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _pairs(names: Sequence[str], values: Sequence[str], shown: Sequence[int], columns: int, lead: str = "") -> str:
    """ "name value" of the columns shown that have a value, in lines."""
    glue = "\0"  # a space at which no line is broken
    pairs = [f"{names[i]} {values[i]}".strip().replace(" ", glue) for i in shown if values[i]]
    short = [pair if len(pair) <= columns - 4 else pair.replace(glue, " ") for pair in pairs]
    return wrapped(lead + ", ".join(short), columns, "    ", "").replace(glue, " ") if pairs else ""


def _cells(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[list[str]], list[bool]]:
    """Headings and rows as text, and which columns are numbers."""
    cells = [list(headings), *([_shown(value) for value in row] for row in rows)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(headings))]
    return cells, numeric


def _justified(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> list[str]:
    return [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(line, widths, numeric, strict=True)]


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Three digits or more, without an exponent from 0.001 to a million."""
    if value != value or value == 0 or not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
