"""The demo: its parts on made-up sequences, and the whole on the real data where the demo's extra is installed."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import trigru
from trigru import demo, reference
from trigru.command.cli import main
from trigru.demo.check import gradient_errors, tolerance
from trigru.demo.data import Labelled
from trigru.demo.model import Classifier, gates_over_time
from trigru.demo.timing import StepTimes, step_times
from trigru.demo.training import train

CPU = torch.device("cpu")


def made_up(count: int = 12, channels: int = 3) -> Labelled:
    """Noise of 3 to 9 steps around a level that tells the class."""
    labels = torch.arange(count) % 3
    lengths = torch.randint(3, 10, (count,)).tolist()
    return Labelled([torch.randn(n, channels) + 2 * k for n, k in zip(lengths, labels.tolist(), strict=True)], labels)


def classifier(variant: str) -> Classifier:
    return Classifier(3, 8, 3, variant=variant, schedule="auto")


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_training_learns_and_repeats_by_seed(variant):
    data = made_up()

    def run():
        torch.manual_seed(1)
        return list(train(classifier(variant), data, data, epochs=20, batch_size=4, seed=1))

    first = run()
    assert first[-1].test_accuracy == 1
    assert first[-1].loss < first[0].loss / 4
    assert run() == first


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_gradients_are_right(variant):
    gru = classifier(variant).gru
    errors = gradient_errors(gru, made_up().packed(range(5)))
    assert errors.keys() == {"input", *dict(gru.named_parameters())}
    assert all(error <= tolerance(CPU) for error in errors.values()), errors


def test_gradient_check_sees_a_wrong_gradient():
    gru = classifier("torch").gru
    gru.weight_hh_l0.register_hook(lambda grad: grad * 1.001)
    errors = gradient_errors(gru, made_up().packed(range(5)))
    wrong = {name for name, error in errors.items() if error > tolerance(CPU)}
    assert wrong == {"weight_hh_l0"}


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_gates_over_time_are_those_of_the_model(variant):
    model, sequence = classifier(variant), torch.randn(6, 3)
    r, z, h = gates_over_time(model, sequence)
    torch.testing.assert_close(h, model.gru(sequence)[0][:, :8].detach())
    before = torch.cat([torch.zeros(1, 8), h[:-1]])
    weights = [getattr(model.gru, f"{kind}_l0") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    torch.testing.assert_close((r, z), reference.gates(sequence, before, *weights, variant=variant)[:2])


def test_packed_leaves_out_indices_past_the_end():
    assert made_up(count=5).packed(range(3, 100)).batch_sizes[0] == 2


@pytest.mark.parametrize("package", ["aeon.datasets", "matplotlib", "tqdm"])
def test_missing_package_is_named(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "trigru.demo.figure", raising=False)
    assert main(["demo"]) == 1
    assert 'pip install -e ".[demo]"' in capsys.readouterr().err


@pytest.fixture
def _extra():
    for package in ("aeon", "matplotlib", "tqdm"):
        pytest.importorskip(package, reason=f"{package} comes with the extra demo, too large for the extra test")


@pytest.mark.usefixtures("_extra")
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_whole_demo(variant, tmp_path, capsys):
    figure = tmp_path / "new" / "figure.png"
    options = ["--epochs", "2", "--device", "cpu", "--variant", variant, "--out", str(figure)]
    assert main(["demo", *options]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "schedule 'eager'" in shown
    assert "nn.GRU of the same size" in shown
    accuracy = float(shown.partition("held-out accuracy ")[2].partition("%")[0])
    assert accuracy > 70, "a ninth is what guessing gives"
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_extra")
def test_json(tmp_path, capsys):
    assert main(["demo", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gradients_right"]
    assert found["schedule"] == "eager"
    assert found["figure"] == str(tmp_path / "demo.png")
    assert max(found["gradient_errors"].values()) <= found["allowed"]


def test_a_step_is_timed_beside_nn_gru_and_changes_nothing():
    gru = classifier("torch").gru
    before = [p.clone() for p in gru.parameters()]
    times = step_times(gru, made_up().packed(range(5)), rounds=2)
    assert min(times.ours_ms, times.peer_ms) > 0
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, gru.parameters(), strict=True))
    assert StepTimes(1.0, 2.0).said == "trigru 2.00x faster"
    assert StepTimes(2.0, 1.0).said == "trigru 2.00x slower"


@pytest.mark.usefixtures("_extra")
def test_wrong_gradients_fail_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "gradient_errors", lambda *_: {"input": float("nan")})
    assert main(["demo", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "gradients differ" in capsys.readouterr().err
    assert (tmp_path / "demo.png").exists()


@pytest.mark.usefixtures("_extra")
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--schedule", "stepwise"], 1),
        (["--device", "cuda:99"], 2),
        (["--device", "meta"], 2),
        (["--device", "nonsense"], 2),
        (["--epochs", "abc"], 2),
        (["--epochs", "0"], 2),
        (["--out", "figure.xyz"], 2),
        (["--out", "/dev/null/figure.png"], 2),
    ],
)
def test_what_cannot_run_is_said_before_training(options, code, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trigru.planning.plan.why_no_kernels", lambda device, dtype: "the reason")
    monkeypatch.setattr(demo, "train", None)
    assert main(["demo", *options]) == code
    assert capsys.readouterr().err.startswith("trigru demo: ")
