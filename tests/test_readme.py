"""The README's Python examples run, in order, as one session; its commands are such as the command line takes, and its
numbers are those of the rows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from trigru.bench.report.report import lines
from trigru.command.cli import COMMANDS, _parser

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "bench/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_examples_run():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)


def commands(page):
    """Every `trigru COMMAND ...` in code, without comments, pipes and what stands for something else."""
    text = page.read_text(encoding="utf-8")
    for name in COMMANDS:
        for found in re.findall(rf"(?:^|`|&& |    )trigru ({name}\b[^`\n]*)", text, re.MULTILINE):
            told = re.split(r"\s+(?:#|\||\\\||>)", found)[0]
            words = shlex.split(re.sub(r"[\[\]…]", "", told))
            if not any(word.isupper() for word in words[1:]):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_such_as_there_are(page):
    for words in commands(page):
        if words[-1].startswith("--variant"):
            words.append("cho")  # "--variant …"
        assert _parser(words[0]).parse_args(words).run is not None


def test_commands_are_found():
    assert ["bench", "--suite", "cpu", "--threads", "2"] in list(commands(README))
    assert sum(len(list(commands(page))) for page in PAGES) > 30


def test_the_table_of_speed_is_that_of_its_rows():
    text = README.read_text(encoding="utf-8")
    folders = set(re.findall(r"bench/results/amd-epyc/[\w-]+", text))
    (folder,) = [each for each in folders if (ROOT / each / "cpu.jsonl").exists()]
    rows = [json.loads(line) for line in (ROOT / folder / "cpu.jsonl").read_text().splitlines()]
    for _, _, variant, _, _, count, mean, lowest, at in lines(rows):
        hidden_size, batch, steps = re.findall(r"\d+", at)
        sizes = f"hidden_size {hidden_size}, batch {batch}, {steps} steps"
        assert f'| `"{variant}"` | {mean:.2f}x | {lowest:.2f}x ({sizes}) |' in text
        assert f"geometric mean of {count} sizes" in text
