"""The examples as their readers run them: in processes of their own, from checkpoints, alone and in twos."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch.distributed as dist

EXAMPLES = Path(__file__).parent.parent / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
EPOCHS = 4
LINE = re.compile(r"^epoch (\d+): loss (\d+\.\d+), test accuracy (\d+\.\d+)%$", re.MULTILINE)

distributed = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)


def needs(package: str) -> pytest.MarkDecorator:
    """Skip without the package; before any fixture trains."""
    reason = f"{package} comes with the extra examples, too large for the extra test"
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


def run(*command: object) -> str:
    """What a command prints; it must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = (sys.executable, *map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    # Now and then torch's gloo aborts a process that has nothing left to do but to exit.
    gloo = "terminate called without an active exception" in done.stderr and "torch.distributed" in str(command)
    assert done.returncode == 0 or gloo, done.stderr[-4000:]
    return done.stdout


def epochs(printed: str) -> dict[int, tuple[float, float]]:
    """Loss and test accuracy in percent, by epoch."""
    found = {int(epoch): (float(loss), float(accuracy)) for epoch, loss, accuracy in LINE.findall(printed)}
    assert len(LINE.findall(printed)) == len(found), "processes that train alone say each epoch once each"
    return found


def in_two_parts(*command: object, again: tuple | None = None) -> dict[int, tuple[float, float]]:
    """The epochs of a training that is stopped halfway and started again from its checkpoint, by `again` if given."""
    first = epochs(run(*command, "--epochs", EPOCHS // 2))
    assert list(first) == list(range(1, EPOCHS // 2 + 1))
    printed = run(*(again or command), "--epochs", EPOCHS)
    assert "going on" in printed
    second = epochs(printed)
    assert list(second) == list(range(EPOCHS // 2 + 1, EPOCHS + 1)), "it goes on where it stopped"
    return first | second


def assert_same(got: dict[int, tuple[float, float]], want: dict[int, tuple[float, float]]) -> None:
    """Every epoch's loss to what float32 leaves after some hundred steps of Adam, accuracies to an image or two."""
    assert list(got) == list(want) == list(range(1, EPOCHS + 1))
    for epoch in want:
        assert got[epoch][0] == pytest.approx(want[epoch][0], rel=1e-4)
        assert got[epoch][1] == pytest.approx(want[epoch][1], abs=1)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[int, tuple[float, float]]:
    """The epochs of one process with the whole batch."""
    checkpoint = tmp_path_factory.mktemp("one") / "checkpoint"
    found = epochs(run(*TORCHRUN, 1, EXAMPLES / "ddp.py", "--epochs", EPOCHS, "--checkpoint", checkpoint))
    losses = [loss for loss, _ in found.values()]
    assert losses == sorted(losses, reverse=True)
    assert found[EPOCHS][1] > 65, "a tenth is what guessing gives"
    return found


@pytest.mark.slow  # eight processes, each of which imports torch; two that train together: test_sharding.py, too
@distributed
def test_two_processes_learn_as_one(one_process, tmp_path):
    assert_same(in_two_parts(*TORCHRUN, 2, EXAMPLES / "ddp.py", "--checkpoint", tmp_path / "new" / "ck"), one_process)


@pytest.mark.slow
@distributed
def test_two_sharded_processes_learn_as_one_which_can_go_on_from_their_checkpoint(one_process, tmp_path):
    script = (EXAMPLES / "fsdp2.py", "--checkpoint", tmp_path / "new" / "ck")
    assert_same(in_two_parts(*TORCHRUN, 2, *script, again=(*TORCHRUN, 1, *script)), one_process)


@distributed
@needs("lightning")
def test_lightning_learns_as_one_process(one_process, tmp_path):
    assert_same(
        in_two_parts(EXAMPLES / "lightning_module.py", "--devices", 2, "--checkpoint", tmp_path / "ck"), one_process
    )


@distributed
@needs("accelerate")
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_learns_as_one_process(processes, one_process, tmp_path):
    assert_same(
        in_two_parts(*TORCHRUN, processes, EXAMPLES / "accelerate_loop.py", "--checkpoint", tmp_path / "ck"),
        one_process,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_learns_as_without_the_compiler(tmp_path):
    script = EXAMPLES / "compiled_training.py"
    want = epochs(run(script, "--eager", "--epochs", EPOCHS, "--checkpoint", tmp_path / "eager" / "ck"))
    assert_same(in_two_parts(script, "--checkpoint", tmp_path / "ck"), want)


@pytest.mark.slow  # it trains, in a process of its own; what it calls is tested in test_onnx.py
def test_onnx_export(tmp_path):
    printed = run(EXAMPLES / "onnx_export.py", "--epochs", 2, "--out", tmp_path / "new" / "digits.onnx")
    by_onnx, by_torch = re.findall(r"(\d+\.\d+)% by", printed)
    assert by_onnx == by_torch
    assert float(by_torch) > 40
    assert float(re.search(r"difference of a logit (\S+),", printed)[1]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "learned", "least", "timed"),
    [
        # steps an episode; a policy that does not remember stays near 50
        pytest.param("recurrent_policy.py", ("--rollouts", 15), r"(\d+) steps an", 100, 2, marks=needs("gymnasium")),
        # guessing gives a quarter
        pytest.param("irregular_series.py", ("--epochs", 20), r"accuracy (\d+)\.\d%", 60, 1, marks=needs("aeon")),
    ],
    ids=["recurrent policy", "irregular series"],
)
def test_what_is_compared_with_loops_learns_and_finds_the_same_gradients(script, options, learned, least, timed):
    printed = run(EXAMPLES / script, *options)
    found = [int(number) for number in re.findall(learned, printed)]
    assert len(found) > 1
    assert found[-1] > least
    assert len(re.findall(r"the same gradients: speed-up \d+\.\d$", printed, re.MULTILINE)) == timed


def test_the_readme_lists_every_example():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(re.findall(r"`(\w+\.py)`", readme))
