"""The command line: every command is found, says what it does, and `info` reports this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import trigru
from trigru.command.cli import COMMANDS, main
from trigru.command.info import report
from trigru.planning.plan import SCHEDULES


def test_module_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "trigru", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"trigru {trigru.__version__}\n"


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: trigru {name}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["info", "--no-such-option"]])
def test_wrong_arguments(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: trigru" in capsys.readouterr().err


def test_info(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in shown
    assert all(f"\n  {schedule:10}" in shown for schedule in SCHEDULES)


def test_info_says_why_a_schedule_cannot_run(monkeypatch):
    monkeypatch.setattr("trigru.planning.plan.why_no_kernels", lambda device, dtype: "the reason")
    assert f"  {'stepwise':10}float32, bfloat16, float16, float64: no: the reason" in report()
