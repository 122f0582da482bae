"""Examples in docstrings and pages run; what surrounds the code (site, templates, workflows) names what is there."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import trigru

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def parsed(path: str | Path):
    return yaml.safe_load(read(path))


def with_examples() -> list[str]:
    """Modules of the package whose source has a doctest, without importing them. trigru.convert and trigru.rl have
    tests of their own."""
    package = ROOT / "trigru"
    names = [m.name for m in pkgutil.walk_packages([str(package)], "trigru.") if "__main__" not in m.name]
    found = []
    for name in ["trigru", *names]:
        path = package.joinpath(*name.split(".")[1:])
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if ">>> " in source.read_text(encoding="utf-8") and not name.startswith(("trigru.convert", "trigru.rl")):
            found.append(name)
    return found


def globals_of_examples() -> dict[str, object]:
    return {"torch": torch, "nn": nn, "trigru": trigru}


@pytest.mark.parametrize("name", with_examples())
def test_examples_of_docstrings_run(name):
    tests = doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module(name), globs={**globals_of_examples(), "__name__": name}
    )
    tests = [test for test in tests if test.examples]
    assert tests
    runner = doctest.DocTestRunner()
    for test in tests:
        assert runner.run(test).failed == 0, test.name


@pytest.mark.parametrize("name", [name for name in trigru.__all__ if name != "__version__"])
def test_each_public_name_has_an_example(name):
    docs = [trigru.__doc__, getattr(trigru, name).__doc__]
    examples = [example.source for doc in docs for example in doctest.DocTestParser().get_examples(doc or "")]
    assert any(f"trigru.{name}" in source for source in examples)


def test_the_example_of_a_timeout_goes_on_by_another_schedule(monkeypatch):
    examples = doctest.DocTestParser().get_examples(trigru.__doc__)
    names = globals_of_examples()
    real, schedules = trigru.GRU.forward, []

    def forward(self, *args):
        schedules.append(self.schedule)
        if len(schedules) == 2:
            raise trigru.KernelTimeout("as a persistent kernel would")
        self.schedule, schedule = "eager", self.schedule
        try:
            return real(self, *args)
        finally:
            self.schedule = schedule

    monkeypatch.setattr(trigru.GRU, "forward", forward)
    for example in examples:
        exec(example.source, names)
    assert schedules == ["auto", "auto", "stepwise", "stepwise", "stepwise"]


@pytest.mark.parametrize("page", ["docs/api-planning.md", "docs/choosing.md"])
def test_pages_about_planning_run(page, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # as it is put back
    blocks = [code for language, code in FENCED.findall(read(page)) if language == "python"]
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.filterwarnings("ignore")  # of the exporters of torch and ONNX
def test_recipes_run(tmp_path, monkeypatch):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text, names = read("docs/recipes.md"), {}
    blocks = list(FENCED.finditer(text))
    assert len(blocks) > 5
    for block in blocks:
        language, code = block.groups()
        assert language == "python"
        line = text.count("\n", 0, block.start()) + 1
        exec(compile("\n" * line + code, "docs/recipes.md", "exec"), names)


def public_names_on_pages() -> set[str]:
    return set(re.findall(r"^      heading: (\S+)$", "".join(read(p) for p in ROOT.glob("docs/api*.md")), re.MULTILINE))


def test_the_reference_has_every_public_name():
    from trigru import convert

    pages = public_names_on_pages()
    functions = {f"trigru.{name}" for name in trigru.__all__} - {"trigru.VARIANTS", "trigru.__version__"}
    assert functions <= pages
    assert {f"trigru.convert.{name}" for name in convert.__all__} <= pages
    assert "VARIANTS" in trigru.__doc__  # the page has the package's docstring


def test_what_the_pages_take_docstrings_from_is_there():
    for page in ROOT.glob("docs/*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            parts = name.split(".")
            path = ROOT.joinpath(*parts)
            if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
                continue
            tree = ast.parse(ROOT.joinpath(*parts[:-1]).with_suffix(".py").read_text(encoding="utf-8"))
            defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
            assert parts[-1] in defined, f"{page.name}: {name}"


def links(path: Path) -> list[str]:
    """Relative links of a Markdown file, outside of code."""
    text = re.sub(r"^(```+).*?^\1$|`[^`\n]+`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]


def tracked_pages() -> list[Path]:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
    return [path for path in [*pages, *sorted((ROOT / "docs").glob("*.md"))] if path.exists()]


@pytest.mark.parametrize("path", tracked_pages(), ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    for target in links(path):
        assert (path.parent / target).exists(), target


@pytest.fixture
def hooks():
    for package in ("mkdocs", "latex2mathml"):
        pytest.importorskip(package, reason="comes with the extra docs")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_out_of_docs_become_pages_of_the_site(hooks):
    text = "[g](../kernels/gates.py) [t](tutorial.md#why) [r](../bench/results/work) `[c](../x.py)` [w](https://x.org)"
    assert hooks.for_site(text, "docs/page.md") == (
        "[g](repository/kernels/gates.py.md) [t](tutorial.md#why) [r](repository/bench/results/work/index.md) "
        "`[c](../x.py)` [w](https://x.org)"
    )
    assert hooks.for_site("[d](docs/tutorial.md)", "README.md") == "[d](../tutorial.md)"
    with pytest.raises(Exception, match=r"\.\./kernels/nothing\.py"):
        hooks.for_site("[n](../kernels/nothing.py)", "docs/page.md")


def test_sections_of_the_readme_are_found_and_rebased(hooks):
    assert "[CONTRIBUTING.md]" not in hooks.readme_section("Use")
    assert hooks.readme_section("Use").startswith("## Use\n")
    assert "](../LICENSE)" in hooks.readme_section("Licence")
    with pytest.raises(Exception, match="Nowhere"):
        hooks.readme_section("Nowhere")


def test_formulas_become_mathml(hooks):
    class Page:
        file = type("File", (), {"src_uri": "page.md"})

    html = '<p><span class="arithmatex">\\(h_t &lt; 1\\)</span></p><div class="arithmatex">\\[\\tilde h\\]</div>'
    shown = hooks.on_page_content(html, Page, None, None)
    assert shown.count("<math") == 2
    assert "arithmatex" not in shown
    assert "_<wbr>" in hooks.on_page_content("<td><code>test_x</code></td>", Page, None, None)
    prime = hooks.on_page_content('<span class="arithmatex">\\(h\'\\)</span>', Page, None, None)
    assert "msup" not in prime
    assert "2032;" in prime
    assert "<mo>&#x0003C;</mo>" in shown


def test_names_of_tests_in_tables_are_folded(hooks):
    class Page:
        file = type("File", (), {"src_uri": "page.md"})

    cell = "<td>yes: <code>test_a.py::test_x</code>, <code>test_a.py::test_y</code></td>"
    shown = hooks.on_page_content(cell, Page, None, None)
    assert shown.startswith("<td>yes<details><summary>2 tests</summary><code>test_<wbr>a.py::test_<wbr>x</code>, ")
    assert hooks.on_page_content("<p><code>test_a.py::test_x</code></p>", Page, None, None).count("details") == 0


def test_the_citation_has_what_cff_requires():
    citation = parsed("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert all({"name"} <= set(author) or {"family-names"} <= set(author) for author in citation["authors"])
    assert citation["version"] == trigru.__version__
    assert citation["license"] == "MIT"
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_the_changelog_has_this_version_and_known_headings():
    text = read("CHANGELOG.md")
    assert f"\n## [{trigru.__version__}]" in text
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= known


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_scripts_that_are_there(path):
    workflow = parsed(path)
    assert workflow["name"]
    assert True in workflow or "on" in workflow  # YAML 1.1 reads the key on as true
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] > 0
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            for script in re.findall(r"\bbash (\S+)", step.get("run", "")):
                assert (ROOT / script).is_file(), script


def test_ci_is_the_script_and_the_gpu_runner_keeps_its_results():
    ci, gpu = (parsed(f".github/workflows/{name}.yml") for name in ("ci", "gpu"))
    assert [step["run"] for job in ci["jobs"].values() for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    (job,) = gpu["jobs"].values()
    assert "self-hosted" in job["runs-on"]
    commands = " ".join(step.get("run", "") for step in job["steps"])
    assert "bash bench/on_gpu.sh" in commands
    (upload,) = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    assert upload["if"] == "always()"
    (out,) = re.findall(r"bench/on_gpu\.sh --only all --out (\S+)", commands)
    assert upload["with"]["path"] == out


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_issue_forms_are_forms(path):
    form = parsed(path)
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert "value" in field["attributes"] if field["type"] == "markdown" else "label" in field["attributes"]


def commands_named() -> set[str]:
    """`trigru ...` in templates, pages of the project and its forms."""
    paths = [*TEMPLATES, ROOT / "CONTRIBUTING.md", ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md"]
    return {c for path in paths for c in re.findall(r"`(trigru [a-z][^`]*)`", path.read_text(encoding="utf-8"))}


def test_commands_named_are_there(capsys):
    from trigru.command.cli import COMMANDS, main

    commands = commands_named()
    assert {"trigru info", "trigru explain"} <= {" ".join(command.split()[:2]) for command in commands}
    for command in sorted(commands):
        name, *options = shlex.split(command)[1:]
        assert name in COMMANDS, command
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in options if option.startswith("--")), command


def test_files_that_contributing_names_are_there():
    text = re.sub(FENCED, "", read("CONTRIBUTING.md"))
    named = re.findall(r"`((?:trigru|kernels|bench|tests|docs|\.ci)/[\w./-]*)`", text)
    assert len(named) > 20
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="comes with the extra docs")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"], cwd=ROOT, check=True
    )
    assert "<math" in (tmp_path / "site" / "tutorial.html").read_text(encoding="utf-8")
