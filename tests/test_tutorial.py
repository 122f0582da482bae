"""The tutorial runs from top to bottom, and its translation is the same tutorial."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trigru import VARIANTS
from trigru.kernels import gates

DOCS = Path(__file__).parent.parent / "docs"
ENGLISH, KOREAN = DOCS / "tutorial.md", DOCS / "tutorial.ko.md"
LANGUAGES = pytest.mark.parametrize("path", [ENGLISH, KOREAN], ids=["english", "korean"])


FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced(path: Path) -> list[tuple[int, str, str]]:
    """(number of the line that opens it, language, content) of each fenced block."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start()) + 1, *match.groups()) for match in FENCED.finditer(text)]


def prose(path: Path) -> str:
    """The text without its fenced blocks."""
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def headings(path: Path) -> list[str]:
    return re.findall(r"^(#+) ", prose(path), re.MULTILINE)


def figures(path: Path) -> list[str]:
    return re.findall(r"!\[[^\]]+\]\((images/[^)]+)\)", prose(path))


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from a PNG file's header."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n", path
    return struct.unpack(">II", header[16:])


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Run the tutorial in an empty directory: its names after the last block, and the directory."""
    for package in ("aeon", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} comes with the extra demo, too large for the extra test")
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import matplotlib

    directory = tmp_path_factory.mktemp("tutorial")
    names: dict[str, object] = {"__name__": "tutorial"}
    shown = ""
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(), warnings.catch_warnings():
        patch.chdir(directory)
        warnings.simplefilter("ignore")  # of the exporters of torch and ONNX
        for line, language, content in fenced(ENGLISH):
            if language == "text":
                assert shown == content, f"line {line}: the block above prints something else"
            if language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as stdout:
                    exec(compile("\n" * line + content, str(ENGLISH), "exec"), names)
                shown = stdout.getvalue()
    return SimpleNamespace(names=names, directory=directory)


def test_tutorial_runs_and_draws_its_figures(session):
    drawn = sorted(path.name for path in (session.directory / "out/tutorial").iterdir())
    assert drawn == sorted(Path(figure).name for figure in figures(ENGLISH))
    for name in drawn:
        committed = DOCS / "images" / name
        assert png_size(committed) == png_size(session.directory / "out/tutorial" / name), "draw it again"
        assert committed.stat().st_size < 200_000, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_tutorial_derives_what_the_kernels_compute(variant, session, monkeypatch):
    """The tutorial's functions of the same names and arguments give the values of kernels/gates.py, run as Python."""
    beside = {"begin_of_step", "begin_grad", "end_of_step", "end_grad", "_partly"}  # the equations: docs/options.md
    functions = {name: f for name, f in vars(gates).items() if hasattr(f, "fn") and name not in beside}
    assert len(functions) > 5
    for name, function in functions.items():
        monkeypatch.setattr(gates, name, function.fn)
    monkeypatch.setattr(gates, "tl", SimpleNamespace(exp2=torch.exp2, abs=torch.abs, where=torch.where))
    for name, function in functions.items():
        arguments = list(inspect.signature(function.fn).parameters)
        tensors = [torch.rand(50, dtype=torch.float64) for a in arguments if a != "VARIANT"]
        rest = [variant] if "VARIANT" in arguments else []
        torch.testing.assert_close(session.names[name](*tensors, *rest), function.fn(*tensors, *rest))


def test_translation_has_the_same_blocks():
    assert [block for _, *block in fenced(KOREAN)] == [block for _, *block in fenced(ENGLISH)]


def test_translation_has_the_same_headings_and_figures():
    assert headings(KOREAN) == headings(ENGLISH)
    assert figures(KOREAN) == figures(ENGLISH)


def test_translation_has_the_same_equations():
    equations = [re.findall(r"^\$\$(.*)\$\$$", prose(path), re.MULTILINE) for path in (ENGLISH, KOREAN)]
    assert equations[0] == equations[1]


@LANGUAGES
def test_github_can_read_the_mathematics(path):
    """An inline formula needs a space before it, and a space or punctuation behind it (github/markup issue 1742);
    Markdown takes away a backslash before punctuation."""
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    text = re.sub(r"^\$\$(.*)\$\$$", lambda match: _no_escapes(match[1]), text, flags=re.MULTILINE)
    for match in re.finditer(r"(.?)\$([^$\n]+)\$(.?)", text):
        before, formula, after = match.groups()
        _no_escapes(formula)
        assert before in ("", " "), match[0]
        assert after in ("", *" ,.;:!?)"), match[0]
        assert formula == formula.strip(), match[0]


def _no_escapes(formula: str) -> str:
    assert not re.search(r"\\[^a-zA-Z]", formula), formula
    return ""


@LANGUAGES
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#]+)", prose(path)):
        assert link.startswith("https://") or (DOCS / link).exists(), link
