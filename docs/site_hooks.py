"""What mkdocs does to pages that are written for GitHub, so that the same files serve both.

Links to files outside of docs/: the site gets a page (or a copy, of what is no text) under repository/ for each.
Formulas in $ and $$: MathML, which browsers set themselves; no script is loaded.
`<!-- README.md: Use -->`: that section of the README.
`<details>`: its contents are Markdown.
Names in tables: may be broken behind an underscore; those of tests are folded.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "repository"
"""Of the site: what links outside of docs/ lead to, each file by its path in the repository."""

LANGUAGES = {".py": "python", ".sh": "sh", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".css": "css"}
TEXT = {"", ".txt", ".cff", ".cfg", *LANGUAGES}
SOURCE_PAGE = "---\nhide: [toc]\nsearch: {exclude: true}\n---\n\n"
FENCE = r"^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[ ]*$"
CODE = r"(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)"
LINK = r"(?P<before>\]\()(?P<target>[^)\s]+)(?P<after>\))"
LINKS = re.compile(f"{FENCE}|{CODE}|{LINK}", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^<!-- README\.md: (.+) -->$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
PRIME = re.compile(r"<msup>(<mi>[^<]*</mi>)<m[io]>(&#x0*2032;)</m[io]></msup>")
"""Raised twice in fonts whose prime is raised already."""

CELL = re.compile(r"<td[ >].*?</td>", re.DOTALL)
CODE_IN_CELL = re.compile(r"<code>[^<]*</code>")
TESTS_IN_CELL = re.compile(r":?\s*((?:<code>test_\w+\.py::\w+</code>(?:,\s*)?)+)")


def replace_links(text: str, replace: Callable[[str], str]) -> str:
    """`text` with the target of each relative link replaced; links in code are none."""

    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or re.match(r"[a-z]+:|#|/", target):
            return match[0]
        path, hash_sign, anchor = target.partition("#")
        return match["before"] + replace(path) + hash_sign + anchor + match["after"]

    return LINKS.sub(replaced, text)


def relative(path: str, folder: str) -> str:
    """A path of the repository as a link from a folder of the repository."""
    return posixpath.relpath(path, folder or ".")


def readme_section(heading: str) -> str:
    """The README's section of that name, with its heading and its links as seen from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = re.split(r"^(?=## )", re.sub(FENCE, _hide_headings, text, flags=re.MULTILINE | re.DOTALL), flags=re.M)
    found = [section for section in sections if section.startswith(f"## {heading}\n")]
    if len(found) != 1:
        raise PluginError(f"README.md: expected one section {heading!r}, got {len(found)}")
    return replace_links(found[0].replace("\0", ""), lambda path: relative(posixpath.normpath(path), "docs")).rstrip()


def _hide_headings(match: re.Match[str]) -> str:
    """A fenced block whose lines no search for headings finds."""
    return match[0].replace("\n#", "\n\0#")


def with_sections(text: str) -> str:
    """A page of docs/ with the README's sections that it asks for."""
    return SECTION.sub(lambda match: readme_section(match[1]), text)


def site_page(path: str) -> str:
    """Where the site has a file or folder of the repository, as mkdocs names sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        name = "README.md" if (ROOT / path / "README.md").exists() else "index.md"
        return f"{FOLDER}/{path}/{name}"
    suffix = posixpath.splitext(path)[1]
    return f"{FOLDER}/{path}.md" if suffix in TEXT else f"{FOLDER}/{path}"


def for_site(text: str, path: str) -> str:
    """The Markdown of the repository's `path`, its links as the site's pages lie."""
    page = site_page(path)

    def replace(target: str) -> str:
        found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if found.startswith("..") or not (ROOT / found).exists():
            raise PluginError(f"{path}: expected a file of the repository, got a link to {target}")
        return relative(site_page(found), posixpath.dirname(page))

    text = replace_links(text, replace)
    return re.sub(r"^<details>$", '<details markdown="1">', text, flags=re.MULTILINE)


def linked(text: str, path: str) -> set[str]:
    """Paths of the repository, outside of docs/, that the Markdown of `path` links to."""
    found: set[str] = set()

    def replace(target: str) -> str:
        found.add(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        return target

    replace_links(text, replace)
    return {target for target in found if not target.startswith(("docs/", ".."))}


def shown(path: str) -> str | None:
    """The Markdown of the site's page for a file or folder outside of docs/; None for what is copied instead."""
    source = ROOT / path
    if source.is_dir():
        if (source / "README.md").exists():
            return (source / "README.md").read_text(encoding="utf-8")
        names = sorted(x.name + "/" * x.is_dir() for x in source.iterdir() if not x.name.startswith(("_", ".")))
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names)
    suffix = posixpath.splitext(path)[1]
    if suffix == ".md":
        return source.read_text(encoding="utf-8")
    if suffix in TEXT:
        code = source.read_text(encoding="utf-8").rstrip()
        language = LANGUAGES.get(suffix, "text")
        return f"{SOURCE_PAGE}# {path}\n\n`````{language}\n{code}\n`````"
    return None


def on_files(files: Files, config: Any) -> Files:
    """Add what links outside of docs/ lead to, and what that links to in turn."""
    todo = {f"{FOLDER}/{name}": name for name in ("CONTRIBUTING.md", "CHANGELOG.md")}
    for file in files.documentation_pages():
        path = f"docs/{file.src_uri}"
        for target in linked(with_sections(file.content_string), path):
            todo[site_page(target)] = target
    done: set[str] = set()
    while todo:
        page, path = todo.popitem()
        if page in done or not (ROOT / path).exists():
            continue  # a link to what is not there fails where it is replaced
        done.add(page)
        text = shown(path)
        if text is None:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
            continue
        files.append(File.generated(config, page, content=text))
        where = page.removeprefix(f"{FOLDER}/") if page.endswith(("README.md", "index.md")) else path
        todo |= {site_page(target): target for target in linked(text, where)}
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page's Markdown as the site needs it."""
    name = page.file.src_uri
    if not name.startswith(f"{FOLDER}/"):
        return for_site(with_sections(markdown), f"docs/{name}")
    path = name.removeprefix(f"{FOLDER}/")
    if (ROOT / path.removesuffix(".md")).exists() and not (ROOT / path).exists():
        return markdown  # a file that is no Markdown
    return for_site(markdown, path)


def on_page_content(html_text: str, page: Any, config: Any, files: Files) -> str:
    """The page with its formulas as MathML, and names in its tables that can be broken."""

    def formula(match: re.Match[str]) -> str:
        block = match[1] == "div"
        tex = html.unescape(match[2]).strip()
        try:
            mathml = latex2mathml.converter.convert(tex, display="block" if block else "inline")
        except Exception as error:  # of its own, of several kinds
            raise PluginError(f"{page.file.src_uri}: expected a formula that MathML can say, got {tex}") from error
        mathml = PRIME.sub(r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>', mathml)
        return f'<div class="formula">{mathml}</div>' if block else mathml

    return CELL.sub(_cell, FORMULA.sub(formula, html_text))


def _cell(cell: re.Match[str]) -> str:
    """A cell whose names of tests, a screen of a phone long, are folded, and whose long names can be broken."""
    return CODE_IN_CELL.sub(_breakable, TESTS_IN_CELL.sub(_folded, cell[0]))


def _folded(tests: re.Match[str]) -> str:
    count = tests[1].count("<code>")
    return f"<details><summary>{count} {'test' if count == 1 else 'tests'}</summary>{tests[1]}</details>"


def _breakable(code: re.Match[str]) -> str:
    """A long name in a table, which may be broken behind its underscores."""
    return code[0].replace("_", "_<wbr>")
