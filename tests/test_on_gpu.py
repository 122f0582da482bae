"""The script for a machine with a GPU, gone through on a CPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "bench" / "on_gpu.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="a script for bash")

# Stands for Python: every part is over at once, some fail. What it was called with is written down.
STAND_IN = """#!/usr/bin/env bash
echo "$PYTHONPATH|$*" >> "$CALLS"
case "$*" in
    *"-m pip"*) exit 1 ;;
    "- "*) [ -n "$PYTHONPATH" ] ;;  # what is installed is not this checkout, but a link is found
    *"import pytest"*) exit 1 ;;
    *"bench --device cpu --out"*quick*) echo "no | room"; exit 3 ;;
    *report.summary*) echo "cannot"; exit 1 ;;
    *) echo fine ;;
esac
"""


def went(folder):
    """Result and last line of each part, by name."""
    lines = [line.split("\t") for line in (folder / "parts.tsv").read_text().splitlines()]
    return {name: (result, said) for name, result, _, said in lines}


def names(group):
    """The parts of a group, or all of them in order."""
    found = re.findall(r'^    "([\w-]+)\|\d+\|(\w+)\|', SCRIPT.read_text(), re.M)
    parts = [name for name, of in found if group in ("all", of)]
    return parts if group == "all" else set(parts)


def run_script(*arguments, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_parts_that_fail_do_not_stop_the_others(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    calls = tmp_path / "calls"
    out = tmp_path / "out"
    done = run_script("--dry-run", "--out", str(out), PYTHON=str(stand_in), CALLS=str(calls), PYTHONPATH="")
    assert done.returncode == 1
    results = went(out)
    assert list(results) == ["install", *names("all"), "summary"]
    assert results["install"] == ("ok", "linked, for pip could not install it")
    assert results["tests"] == ("FAILED with exit code 1", "pytest is not installed, so no test ran")
    assert results["quick"] == ("FAILED with exit code 3", "no   room")  # nothing that would break a table
    assert [results[name][0] for name in ("machine", "check", "full-layer", "fit-rows")] == ["ok"] * 4
    assert {results[name][0] for name in names("first") - {"machine", "tests"}} == {"skipped"}
    assert "The summary could not be made" in (out / "summary.md").read_text()
    after = [line for line in calls.read_text().splitlines() if "trigru bench" in line]
    assert after
    assert all(line.split("|")[0] for line in after)  # the link is found by everything that follows


def test_a_link_makes_a_whole_package(tmp_path):
    """What the script falls back to is importable, with its kernels and benchmarks, from outside the checkout."""
    package = tmp_path / "path" / "trigru"
    package.parent.mkdir()
    package.symlink_to(ROOT / "trigru")
    code = "import trigru, trigru.kernels.launch, trigru.bench.command as c; print(c.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "path")},
    )
    assert done.stdout.startswith(str(package))


@pytest.mark.parametrize(
    "arguments", [["--no-such-option"], ["--out"], ["--only", "check,no-such-part"], ["--minutes", "soon"]]
)
def test_wrong_arguments(arguments):
    done = run_script(*arguments)
    assert done.returncode == 2
    assert "on_gpu.sh" in done.stderr
    assert arguments[-1].split(",")[-1] in done.stderr


def test_every_part_ends_within_ten_minutes():
    listed = run_script("--list").stdout.splitlines()
    limits = {line.split()[0]: int(line.split(" at most ")[1].split()[0]) for line in listed}
    assert list(limits) == names("all")
    assert max(limits.values()) < 600


@pytest.fixture
def stand_in(tmp_path):
    """A function that runs the script with a Python under which every part is over at once; what it was called with."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text('#!/usr/bin/env bash\necho "$*" >> "$CALLS"\n[ -z "${BROKEN:-}" ] || [[ "$*" != *$BROKEN* ]]\n')
    python.chmod(0o755)

    def run(*arguments, **environment):
        calls.write_text("")
        run_script(*arguments, "--out", str(tmp_path / "out"), PYTHON=str(python), CALLS=str(calls), **environment)
        return went(tmp_path / "out"), calls.read_text()

    return run


def test_parts_by_name(stand_in):
    results, calls = stand_in("--only", "check,pingpong")
    assert list(results) == ["install", "pingpong", "check", "summary"]
    assert "trigru check --quick" in calls
    assert "trigru.bench.first" in calls


def test_what_was_cut_off_goes_on(stand_in):
    results, _ = stand_in("--only", "check,steps,host", BROKEN=" steps")
    assert [results[name][0] for name in ("check", "steps", "host")] == ["ok", "FAILED with exit code 1", "ok"]
    results, calls = stand_in("--only", "check,steps,host")
    assert {results[name][0] for name in ("check", "steps", "host")} == {"ok"}
    assert "trigru.bench.first --out" in calls
    assert "trigru check" not in calls
    _, calls = stand_in("--only", "check", "--again")
    assert "trigru check" in calls


def test_the_time_is_up(stand_in):
    results, calls = stand_in("--minutes", "0")
    assert {results[name] for name in names("first")} == {
        ("left out", "the time is up; the same command goes on from here")
    }
    assert "trigru.bench.first" not in calls.replace("summary", "")


@pytest.mark.slow
def test_dry_run(tmp_path):
    done = run_script("--dry-run", "--out", str(tmp_path / "out"), PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout
    results = went(tmp_path / "out")
    assert {result for result, _ in results.values()} == {"ok", "skipped"}
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "not measured yet" in summary
    assert "| cpu " in summary
    assert list((tmp_path / "out").glob("*.png"))
