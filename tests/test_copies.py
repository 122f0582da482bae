"""No kernel is a copy of another: functions of kernels/ share no six lines one after another."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import trigru.kernels

LINES = 6
"""So many lines that follow each other in two functions are a copy."""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Those that Triton compiles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(mark) for mark in node.decorator_list):
            yield node


def lines_of(function: ast.FunctionDef) -> list[str]:
    """Its body without its docstring, a statement on a line, as deep as it stands in the function it does not count."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return [line.strip() for statement in body for line in ast.unparse(statement).splitlines()]


def copies(bodies: dict[str, list[str]]) -> dict[tuple[str, ...], list[str]]:
    """Of every LINES lines that stand in several functions, these."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, lines in bodies.items():
        for i in range(len(lines) - LINES + 1):
            found[tuple(lines[i : i + LINES])].append(f"{name}, line {i + 1}")
    return {lines: places for lines, places in found.items() if len(places) > 1}


def test_no_kernel_is_a_copy_of_another():
    bodies = {}
    for path in sorted(Path(trigru.kernels.__file__).parent.glob("*.py")):
        for function in functions(ast.parse(path.read_text())):
            bodies[f"{path.name}: {function.name}"] = lines_of(function)
    assert len(bodies) > 100
    found = copies(bodies)
    assert not found, "\n\n".join("\n".join((*places, *lines)) for lines, places in found.items())


def test_copies_are_found():
    """In nested blocks, however they are laid out, too."""
    first = (
        "@triton.jit\ndef f(a):\n    x = a\n    if x:\n        b = 1\n        c = g(\n            1,\n            2)\n"
    )
    first += "        d = 3\n        e = 4\n        x = 5\n        y = 6\n"
    second = "@triton.jit(do_not_specialize=['a'])\ndef h(a):\n    '''Its own.'''\n    b=1;c=g(1, 2)\n    d = 3\n"
    second += "    e = 4\n    x = 5\n    y = 6\n    return y\n"
    bodies = {one.name: lines_of(one) for source in (first, second) for one in functions(ast.parse(source))}
    assert list(copies(bodies).values()) == [["f, line 3", "h, line 1"]]
    bodies["h"].remove("d = 3")
    assert not copies(bodies)
