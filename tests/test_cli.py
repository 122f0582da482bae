"""The command line: every command is found and says what it does; what does not fit is refused in one line; what is
printed fits the terminal, and its help needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import trigru
from trigru.command import cli, info
from trigru.command.cli import COMMANDS, main
from trigru.command.options import Refused, place_to_write, seed
from trigru.command.tables import fitted, number
from trigru.kernels import config
from trigru.planning.plan import SCHEDULES
from trigru.started import only_for_help


def run(*argv, **options):
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, **options)


def test_module_runs_as_the_command():
    result = run("-m", "trigru", "--version", check=True)
    assert result.stdout == f"trigru {trigru.__version__}\n"


@pytest.mark.parametrize(
    ("text", "fits"), [("-1", True), (2**64 - 1, True), (2**64, False), (-(10**30), False), ("x", False)]
)
def test_a_seed_is_one_that_torch_takes(text, fits):
    if fits:
        torch.Generator().manual_seed(seed(str(text)))
    else:
        assert main(["demo", f"--seed={text}"]) == 2


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_lists_every_command(argv, capsys):
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-V"]], ids=" ".join)
def test_help_needs_no_torch(argv, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    (tmp_path / "trigru_script").mkdir()
    script = tmp_path / "trigru_script" / "trigru"  # as pip writes it
    script.write_text("import sys\nfrom trigru.command.cli import main\nsys.exit(main())\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}
    for way in (["-m", "trigru"], [str(script)]):
        done = run(*way, *argv, env=env)
        assert done.returncode == 0, done.stderr
        assert "trigru" in done.stdout


@pytest.mark.parametrize(
    ("argv", "original", "expected"),
    [
        (["/bin/trigru"], ["python", "/bin/trigru"], True),
        (["C:\\Scripts\\trigru.exe", "-V"], ["trigru.exe", "-V"], os.name == "nt"),
        (["-m", "--help"], ["python", "-X", "dev", "-m", "trigru", "--help"], True),
        (["-m"], ["python", "-m", "trigru"], True),
        (["-m", "--help"], ["python", "-m", "pytest", "--help"], False),
        (["/bin/trigru", "info", "--help"], ["python", "/bin/trigru", "info", "--help"], False),
        (["train.py", "--help"], ["python", "train.py", "--help"], False),
        ([""], ["python"], False),
    ],
)
def test_who_needs_no_torch(argv, original, expected):
    assert only_for_help(argv, original) is expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: trigru {name}" in shown
    assert "--json" in shown


WRONG = [
    "no-such-command",
    "info --no-such-option",
    "explain --device mi300",
    "explain --device nonsense",
    "explain --hidden -3",
    "explain --hidden 1.5",
    "explain --batch 0",
    "explain --layers 0",
    "explain --seq-len 0",
    "explain --dtype bf16 --tf32",
    "inspect --target h100",
    "inspect --target sm_91",
    "inspect --hidden 0",
    "inspect --jobs 0",
    "inspect --target gfx942 --schedule persistent",
    "tune --hidden 0",
    "tune --device cuda:99",
    "tune --dropout 2",
    "tune --seconds 0",
    "tune --out /dev/null/here",
    "warm --device nonsense",
    "warm --batch 0",
    "warm --jobs 0",
    "check --device cuda:99",
    "check --schedule nonsense",
    "check --ptx --device cpu",
    "bench --seconds -1",
    "bench --minutes nan",
    "bench --threads 0",
    "bench --hidden 0",
    "bench --seq-len x",
    "bench --peers nonsense",
    "bench --device cpu --tiny --out /dev/null/here",
    "bench --write",
    "bench --fit /dev/null/rows",
    "bench --show /dev/null",
]


@pytest.mark.parametrize("argv", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(argv, capsys):
    assert main(argv.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("trigru")


def test_an_unknown_option_is_refused_with_the_command_that_lists_its_options(capsys):
    assert main(["check", "--no-such-option"]) == 2
    assert capsys.readouterr().err.endswith("--no-such-option (trigru check --help has the options)\n")


def test_interrupted_in_one_line(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "\ntrigru info: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="about POSIX pipes")
def test_nobody_reads_on():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "trigru", "explain", "--json"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (cli.BROKEN_PIPE, "")


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize(
    "argv", [["info"], ["explain"], ["explain", "--device", "t4", "--dtype", "fp32"]], ids=" ".join
)
def test_output_is_no_wider_than_the_terminal(argv, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(
        info, "facts", lambda: {"versions": {"torch": "2"}, "schedules": {}, "triton": {"state": "x " * 99}}
    )
    assert main(argv) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


@pytest.mark.parametrize("columns", range(16, 70, 3))
def test_a_table_never_cuts_a_number(columns):
    headings = ["name", "steps", "us a step", "bytes", "why", "same"]
    rows = [["persistent", 1024, 1.339, 123_456_789, "because of this and that", 7], ["b", 2, 0.25, 3, "", 7]]
    shown = fitted(headings, rows, columns)
    words = shown.replace(",\n", " ").replace(", ", " ").split()
    assert all(value in " ".join(words) for value in ("persistent", "1,024", "1.34", "123,456,789", "0.25"))
    assert max(map(len, shown.splitlines())) <= max(columns, len("    123,456,789,"))
    assert shown.startswith("in every row:")


@pytest.mark.parametrize(
    ("value", "shown"), [(1990.4, "1,990"), (65.61, "65.6"), (1.3391, "1.34"), (1e-7, "1e-07"), (float("nan"), "nan")]
)
def test_numbers_are_read_without_an_exponent(value, shown):
    assert number(value) == shown


def test_explain_says_what_auto_takes(capsys):
    assert main(["explain", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["auto"] == found["schedules"][0]["schedule"] == "persistent"
    for row in found["schedules"]:
        assert (row["us_a_step"] is None) == (row["us_for_all"] is None) == (row["why_not"] is not None)
    assert main(["explain", "--layers", "3", "--seq-len", "10", "--json"]) == 0
    more = json.loads(capsys.readouterr().out)["schedules"][0]
    assert more["us_for_all"] == pytest.approx(30 * more["us_a_step"])
    assert main(["explain"]) == 0
    assert "schedule=\"auto\" takes 'persistent'" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "auto"), [(8, "torch"), (9, "eager")])
def test_explain_of_a_cpu_is_what_a_layer_in_training_does(steps, auto, capsys):
    assert (
        main(["explain", "--device", "cpu", "--dtype", "fp32", "--seq-len", str(steps), "--batch", "2", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["auto"] == auto
    assert trigru.explain(trigru.GRU(4, 512), torch.randn(steps, 2, 4)).schedule == auto


def test_explain_without_triton_plans_for_one_that_was_tried(monkeypatch, capsys):
    monkeypatch.setattr("trigru.command.explain.why_unusable", lambda: "the package triton is not installed")
    monkeypatch.setattr(config, "triton_version", lambda: (0, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["explain"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "takes 'persistent'" in shown
    assert "this version of Triton" not in shown
    assert "Here no kernel can be compiled: the package triton is not installed." in shown


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert os.path.samefile(found["versions"]["path"], os.path.dirname(trigru.__file__))
    assert list(found["schedules"]["cpu"]) == list(SCHEDULES)
    assert {"versions", "devices", "triton", "settings", "environment", "schedules"} == set(found)
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    assert "\n  stepwise, walking, resident, persistent\n" in shown


def test_info_says_why_a_schedule_cannot_run(monkeypatch):
    monkeypatch.setattr("trigru.planning.plan.why_no_kernels", lambda device, dtype: "the reason")
    assert "    float32, bfloat16, float16, float64: no: the reason" in info.report()


def test_a_place_to_write_is_made_or_refused(tmp_path):
    place_to_write("--out", tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="--out: expected a place that can be written in"):
        place_to_write("--out", tmp_path / "file")
