"""No time without a right result; every row whole; peers by their adapters, with stand-ins that have their layouts."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch._dynamo
import torch._functorch.config
import torch.nn.functional as F
from conftest import INTERPRETED
from torch import nn

import trigru
from trigru.bench.cases.case import DIRECTIONS, Case, random_inputs, source_of_weights
from trigru.bench.measuring import check, conditions
from trigru.bench.measuring.compare import Plan, rows_of
from trigru.bench.measuring.side import ours, side_of_module
from trigru.bench.measuring.timers import HostTimer
from trigru.bench.peers import PEERS, Peer, flashrnn, gru_qat, haste, torch_gru, torchrl
from trigru.bench.suites import memory
from trigru.kernels.launch import using

LAYER = Case("layer", "cpu", "fp32", "torch", 6, 3, 40)
NN_GRU = PEERS["nn.GRU"]


def plan(*peers, **options):
    return Plan(peers or (NN_GRU,), HostTimer(), budget_s=0.0, **options)


@pytest.mark.parametrize(
    "case",
    [
        LAYER,
        replace(LAYER, variant="chung", packed=True),
        replace(LAYER, variant="cho", num_layers=2, bidirectional=True),
        replace(LAYER, features=4, num_layers=2),
        replace(LAYER, num_layers=2, bidirectional=True, packed=True),
        replace(LAYER, cell=True, seq_len=1, variant="cho"),
        replace(LAYER, dtype="bf16", memory="recompute"),
    ],
    ids=str,
)
def test_rows_are_whole(case):
    rows = list(rows_of(case, plan()))
    assert [row["direction"] for row in rows] == list(DIRECTIONS)
    for row in rows:
        assert "error" not in row, row
        assert row["ours_ms"] > 0
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
        assert row["ratio_p20"] <= row["ratio_p50"] <= row["ratio_p80"]
        assert row["ours_ms_p20"] <= row["ours_ms_p50"] <= row["ours_ms_p80"]
        assert row["precision"] == "ieee"
        assert row["packed"] == case.packed
        assert row["input_size"] == (case.features or case.hidden_size)


def test_a_graph_is_recorded_for_each_side_and_direction():
    recorded = []

    def record(make):
        call = make()
        recorded.append(call)
        return call

    rows = list(rows_of(LAYER, plan(modes=("eager", "graph"), record=record)))
    assert [row["mode"] for row in rows] == ["eager"] * 3 + ["graph"] * 3
    assert len(recorded) == 6


def test_a_graph_that_cannot_be_recorded_is_a_row_without_a_time():
    def record(make):
        raise RuntimeError("capture failed\nand much more")

    (row,) = rows_of(LAYER, plan(directions=("forward",), modes=("graph",), record=record))
    assert row["error"] == "RuntimeError: capture failed"
    assert "ours_ms" not in row


class Wrong(trigru.GRU):
    """trigru's GRU with a mistake at one step."""

    late = False
    backward_only = False

    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        if self.backward_only:
            output = output.detach() + 0.5 * (output - output.detach())
        else:
            step = -1 if self.late else 0
            output = output.index_fill(0, torch.tensor([step % len(output)]), 0.1)
        return output, h_n


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({}, "output is"),
        ({"late": True}, "output is"),
        ({"backward_only": True}, "gradient of input is"),
    ],
)
def test_a_wrong_result_gets_no_time(attributes, said, monkeypatch):
    for name, value in attributes.items():
        monkeypatch.setattr(Wrong, name, value)
    monkeypatch.setattr(trigru, "GRU", Wrong)
    (row,) = rows_of(LAYER, plan())
    assert "ours_ms" not in row
    assert row["error"].startswith("WrongResult: trigru: ")
    assert said in row["error"]


def test_a_mistake_after_the_checked_steps_is_found():
    case = replace(LAYER, seq_len=check.CHECKED_STEPS + 8)
    source, inputs = source_of_weights(case), random_inputs(case)
    short = ours(replace(case, seq_len=check.CHECKED_STEPS), source, inputs.first(check.CHECKED_STEPS))
    late = Wrong(6, 6)
    late.late = True
    late.load_state_dict(source.state_dict())
    with pytest.raises(check.WrongResult, match="some step of the whole sequence"):
        check.check(short, side_of_module("late", late, inputs), source, case, inputs)


def test_a_wrong_peer_gets_no_time_and_is_named():
    def zeros(case, source, inputs):
        side = torch_gru.side(case, source, inputs)
        side.output = torch.zeros_like
        return side

    measured = plan(Peer("broken", lambda case: None, zeros))
    (row,) = rows_of(LAYER, measured)
    assert "ours_ms" not in row
    assert ("broken", row["error"]) in measured.skipped


def test_a_peer_that_cannot_run_is_skipped_with_its_reason():
    measured = plan(Peer("absent", lambda case: "the package is not installed", torch_gru.side))
    assert list(rows_of(LAYER, measured)) == []
    assert measured.skipped == {("absent", "the package is not installed"): 1}


def test_a_schedule_that_cannot_run_is_skipped_with_its_reason():
    measured = plan()
    assert list(rows_of(replace(LAYER, schedule="persistent"), measured)) == []
    ((peer, reason),) = measured.skipped
    assert peer == "trigru"
    assert "cannot run here" in reason


def test_peers_that_are_not_installed_say_so():
    case = replace(LAYER, device="cuda")
    for name, peer in PEERS.items():
        if name not in ("nn.GRU", "torch.compile", "trigru, flags"):
            assert "is not installed" in (peer.obstacle(case) or "is not installed")
    assert "persistent" in PEERS["trigru, flags"].obstacle(LAYER)
    assert "one layer" in PEERS["torch.compile"].obstacle(replace(case, packed=True))


def test_precision_is_the_same_on_both_sides_and_put_back():
    assert not torch.backends.cuda.matmul.allow_tf32
    with conditions.multiplied_in("tf32"):
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def assert_right(peer, case, build):
    """The adapter's side has the reference's output and gradients, in nn.GRU's layout."""
    source, inputs = source_of_weights(case), random_inputs(case)
    if peer.zero_state:
        inputs = replace(inputs, h0=torch.zeros_like(inputs.h0))
    side = build(case, source, inputs)
    assert check.check(side, side, source, case, inputs) < 1e-5


def stand_in(monkeypatch, name, **contents):
    module = ModuleType(name)
    for key, value in contents.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


PADDED = replace(LAYER, seq_len=12)


def test_flashrnn_layout(monkeypatch):
    def flashrnn_(wx, r, b, states, function, backend, dtype):
        assert (function, backend, dtype) == ("gru", "cuda", "float32")
        h, outputs = states[0][:, 0], []  # (B, heads, D)
        for t in range(wx.shape[1]):
            by_state = torch.einsum("ghdp,bhp->bghd", r, h)
            reset = torch.sigmoid(wx[:, t, 0] + by_state[:, 1] + b[1])
            update = torch.sigmoid(wx[:, t, 1] + by_state[:, 2] + b[2])
            h = update * h + (1 - update) * torch.tanh(wx[:, t, 2] + b[3] + reset * (by_state[:, 0] + b[0]))
            outputs.append(h)
        return torch.stack(outputs, 1)[None], h[None, :, None]

    stand_in(monkeypatch, "flashrnn", flashrnn=flashrnn_)
    assert_right(flashrnn.PEER, PADDED, flashrnn.side)


def test_gru_qat_layout(monkeypatch):
    def gru_scan_persistent(gi, h0, w_h, b_h):
        h, outputs = h0, []
        for row in gi:
            r, z, n = row.chunk(3, -1)
            hr, hz, hn = F.linear(h, w_h, b_h).chunk(3, -1)
            z = torch.sigmoid(z + hz)
            h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
            outputs.append(h)
        return torch.stack(outputs)

    stand_in(monkeypatch, "gru_qat")
    stand_in(monkeypatch, "gru_qat.triton_kernels")
    stand_in(monkeypatch, "gru_qat.triton_kernels.scan", gru_scan_persistent=gru_scan_persistent)
    assert_right(gru_qat.PEER, PADDED, gru_qat.side)


def test_torchrl_layout(monkeypatch):
    class GRUModule(nn.Module):
        def __init__(self, gru, in_keys, out_keys, recurrent_backend, recurrent_matmul_precision, **options):
            super().__init__()
            assert gru.batch_first
            assert (recurrent_backend, recurrent_matmul_precision) == ("triton", "ieee")
            self.gru, self.out_keys = gru, out_keys

        def forward(self, data):
            assert data["is_init"].shape == (3, 12, 1)
            state = data["state"][:, 0].transpose(0, 1).contiguous()
            return {self.out_keys[0]: self.gru(data["input"], state)[0]}

    stand_in(monkeypatch, "tensordict", TensorDict=lambda contents, batch_size: contents)
    stand_in(monkeypatch, "torchrl")
    stand_in(monkeypatch, "torchrl.modules", GRUModule=GRUModule)
    assert_right(torchrl.PEER, PADDED, torchrl.side)


def test_haste_layout(monkeypatch):
    class GRU(nn.Module):
        """Gates z, r, n; weights transposed; no initial state."""

        def __init__(self, input_size, hidden_size):
            super().__init__()
            self.kernel = nn.Parameter(torch.empty(input_size, 3 * hidden_size))
            self.recurrent_kernel = nn.Parameter(torch.empty(hidden_size, 3 * hidden_size))
            self.bias = nn.Parameter(torch.empty(3 * hidden_size))
            self.recurrent_bias = nn.Parameter(torch.empty(3 * hidden_size))

        def forward(self, input):
            h, outputs = input.new_zeros(input.shape[1], self.recurrent_kernel.shape[0]), []
            for x in input:
                z, r, n = (x @ self.kernel + self.bias).chunk(3, -1)
                hz, hr, hn = (h @ self.recurrent_kernel + self.recurrent_bias).chunk(3, -1)
                z = torch.sigmoid(z + hz)
                h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
                outputs.append(h)
            return torch.stack(outputs), h[None]

    stand_in(monkeypatch, "haste_pytorch", GRU=GRU)
    assert_right(haste.PEER, PADDED, haste.side)


def test_cudnns_weights_lie_together_and_inference_is_evaluation(monkeypatch):
    seen = []
    forward = nn.GRU.forward
    monkeypatch.setattr(nn.GRU, "flatten_parameters", lambda self: seen.append("flat"))

    def watched(self, *arguments):
        seen.append("training" if self.training else "evaluation")
        return forward(self, *arguments)

    source, inputs = source_of_weights(PADDED), random_inputs(PADDED)
    seen.clear()
    side = torch_gru.side(PADDED, source, inputs)
    assert seen == ["flat"]
    monkeypatch.setattr(nn.GRU, "forward", watched)
    for direction in ("forward", "forward+backward", "backward"):
        side.timed(direction)()
    assert seen == ["flat", "evaluation", "training", "training"]


def test_a_peer_without_an_initial_state_is_compared_from_zeros():
    seen = []

    def side(case, source, inputs):
        seen.append(inputs.h0)
        return torch_gru.side(case, source, inputs)

    rows = list(rows_of(LAYER, plan(Peer("stateless", lambda case: None, side, zero_state=True))))
    assert rows
    assert not any("error" in row for row in rows)
    assert all(not h0.any() for h0 in seen)


@pytest.fixture
def compiler_settings_put_back():
    """What the adapter of torch.compile sets for good."""
    dynamo, autograd = torch._dynamo.config, torch._functorch.config
    with (
        dynamo.patch(recompile_limit=dynamo.recompile_limit),
        autograd.patch(donated_buffer=autograd.donated_buffer),
    ):
        yield


def test_compiled_loop(monkeypatch, compiler_settings_put_back):
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)  # compiling takes half a minute
    peer = PEERS["torch.compile"]
    case = replace(PADDED, variant="cho")
    rows = list(rows_of(case, plan(peer)))
    assert [row["peer"] for row in rows] == ["torch.compile"] * 3
    assert not any("error" in row for row in rows)


@pytest.mark.parametrize(("kept", "elements"), [("keep", 5), ("recompute", 1)])
def test_kept_bytes_are_those_of_states_and_gates(kept, elements):
    case = replace(LAYER, suite="memory", memory=kept)
    row = memory.row(case)
    module_clone = 1  # nn.GRU on a CPU lets its output be modified in place, so the module hands out a copy
    assert row["ours_kept_bytes"] == (elements + module_clone) * 4 * 40 * 3 * 6
    assert row["ratio"] == pytest.approx(row["peer_kept_bytes"] / row["ours_kept_bytes"])
    assert row["ours_peak_bytes"] is None


@pytest.mark.skipif(INTERPRETED, reason="programs that wait cannot run one after another")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_side_of_flags_exchanges_by_them_in_every_direction(direction):
    from ptx import ptx_launcher

    case = Case("layer", "cpu", "bf16", "cho", 32, 16, 3, schedule="persistent")
    launcher = ptx_launcher(arch=90, seed=0)
    with using(launcher):
        side = PEERS["trigru, flags"].side(case, source_of_weights(case), random_inputs(case))
        side.results()
        side.timed(direction)()
    assert len(launcher.launches) >= 3
    assert all(launch["atomics"] > 0 for launch in launcher.launches)
