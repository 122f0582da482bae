"""Stacks whose layers run together: when the plan says so and why not, and through `trigru.GRU` against the
reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import error
from conftest import INTERPRETED, generated_code
from ptx import ptx_launcher

import trigru
from trigru import reference
from trigru.command.cli import main
from trigru.kernels.config import stacked_config, why_not_stacked
from trigru.kernels.errors import DoesNotFit
from trigru.kernels.launch import using
from trigru.layer import Weights
from trigru.planning import cost, plan
from trigru.planning.candidates import DIRECTIONS
from trigru.planning.devices import PRESETS
from trigru.planning.stages import Choice, grouped, staged
from trigru.planning.together import Stack, together, why_apart
from trigru.schedules.reserve import dropout_mask, scaled

pytestmark = generated_code
H100 = PRESETS["H100"]
executed = pytest.mark.skipif(INTERPRETED, reason="programs that wait for each other cannot run one after another")


def planned(layers, *, hidden_size=256, batch=16, seq_len=200, device=H100, direction="forward", why=None, **options):
    sizes = cost.Layer("torch", torch.bfloat16, batch, hidden_size)
    sizes = replace(sizes, **options)
    choice = plan.planned("auto", device, sizes, direction)
    return together(choice, device, sizes, Stack(layers, seq_len, why), direction)


@pytest.mark.parametrize("device", ["A100", "H100", "L4"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_planned_launches_fit_the_device_and_take_every_layer_once(device, direction):
    for hidden_size in (32, 128, 256, 384, 512):
        for batch in (1, 16, 100):
            for layers in (1, 2, 3, 5, 7):
                found = planned(
                    layers, hidden_size=hidden_size, batch=batch, direction=direction, device=PRESETS[device]
                )
                order = [index for stage in found.stages for index in stage.layers]
                assert sorted(order) == list(range(layers))
                assert [stage.layers[0] for stage in found.stages] == sorted(
                    (stage.layers[0] for stage in found.stages), reverse=direction == "backward"
                )
                for stage in found.stages:
                    config = stage.choice.config
                    if len(stage.layers) > 1:
                        assert config.layers == len(stage.layers)
                        assert config.tiles_at_once % config.layers == 0
                        programs, tiles = config.grid(hidden_size, batch)
                        there = PRESETS[device].multiprocessors * config.on_a_multiprocessor
                        assert programs * config.tiles_at_once <= there
                        assert stage.choice.turns == -(-tiles * config.layers // config.tiles_at_once)


def test_time_is_of_all_steps_and_layers_but_one():
    found = planned(5)
    (stage,) = found.stages
    assert stage.layers == (0, 1, 2, 3, 4)
    assert found.launches(200) == 1
    assert found.seconds(200, H100.eager_launch_time) == pytest.approx(
        204 * stage.choice.seconds + H100.eager_launch_time
    )
    apart = planned(5, why="a reason")
    assert [stage.layers for stage in apart.stages] == [(0,), (1,), (2,), (3,), (4,)]
    assert found.seconds(200, H100.eager_launch_time) < apart.seconds(200, H100.eager_launch_time) / 3


def test_more_layers_than_fit_run_in_groups_as_equal_as_can_be():
    found = planned(7, hidden_size=512)
    assert [stage.layers for stage in found.stages] == [(0, 1, 2), (3, 4, 5, 6)]
    assert [stage.layers for stage in planned(7, hidden_size=512, direction="backward").stages] == [
        (3, 4, 5, 6),
        (0, 1, 2),
    ]
    assert grouped(5, 2, "forward") == [(0,), (1, 2), (3, 4)]
    by_name = Choice("persistent", "asked for by name", replace(stacked_config(torch.float16, 8, 64), layers=3))
    assert [stage.layers for stage in staged(4, 1, by_name).stages] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"hidden_size": 768}, "in a launch of several its registers spill above hidden_size 512"),
        ({"hidden_size": 384}, "between hidden_size 256 and 512 its registers spill"),
        ({"hidden_size": 250}, "it adds no hidden units"),
        ({"dtype": torch.float32, "precision": "ieee"}, "float32 without TF32 does not fit its registers"),
        ({"hidden_size": 512, "device": replace(H100, multiprocessors=40)}, "two need 64 programs at once"),
        ({"hidden_size": 512, "device": replace(H100, multiprocessors=80), "layers": 3}, "one would be left by itself"),
        ({"device": PRESETS["T4"], "dtype": torch.float16}, "compute capability 8.0"),
        ({"hidden_size": 32}, "predicted"),
        ({"why": "each needs both directions"}, "each needs both directions"),
    ],
)
def test_why_layers_run_one_after_another(options, why):
    found = planned(**{"layers": 2} | options)
    assert len(found.stages) == options.get("layers", 2)
    assert "; layer by layer: " in found.reason
    assert why in found.reason.split("; layer by layer: ")[1]


def test_sizes_of_float32_and_other_versions_of_triton(monkeypatch):
    assert why_not_stacked("torch", torch.float32, 256, "tf32") is None
    assert "above hidden_size 256" in why_not_stacked("torch", torch.float32, 512, "tf32")
    monkeypatch.setattr(trigru.kernels.config, "one_use_of_a_fragment", lambda: True)
    assert why_not_stacked("torch", torch.bfloat16, 256, "ieee") is None
    assert "version of Triton" in why_not_stacked("cho", torch.bfloat16, 256, "ieee")


def explained(x=None, *args, **options):
    call = options.pop("call", {})
    layer = trigru.GRU(8, 64, 2, dtype=torch.bfloat16, **options)
    with using(ptx_launcher()):
        return trigru.explain(layer, torch.zeros(50, 3, 8).bfloat16() if x is None else x, *args, **call).reason


def test_explain_says_which_and_why():
    assert "2 layers in a launch, each a step behind the one before it" in explained(schedule="persistent")
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.zeros(5, 2, 8).bfloat16(), torch.tensor([5, 2]))
    assert "layer by layer: a launch of several takes no packed" in explained(packed, schedule="persistent")
    assert "layer by layer: each needs both directions" in explained(schedule="persistent", bidirectional=True)
    assert "layer by layer: asked for 'stepwise' by name" in explained(schedule="stepwise")
    reset = {"reset": torch.zeros(50, 3, dtype=torch.bool)}
    assert "runs the equations alone" in explained(schedule="persistent", call=reset)
    layer = trigru.GRU(8, 64, 2, memory="recompute")._records(torch.zeros(2, 1, 8), None).layer
    assert why_apart(layer, "forward") is None
    assert "computed again" in why_apart(layer, "backward")


def test_the_command_line_plans_stacks(capsys):
    assert main(["explain", "--hidden", "256", "--layers", "3", "--batch", "16"]) == 0
    assert "3 layers in a launch" in " ".join(capsys.readouterr().out.split())


def of_both(layers, *, dropout=0.0, dtype=torch.float16, memory="keep", frozen=0, **options):
    """Results and gradients of a module and of the float64 reference, and the launches."""
    module = trigru.GRU(8, 32, layers, dropout=dropout, dtype=dtype, schedule="persistent", memory=memory, **options)
    parameters = list(module.parameters())
    each = len(parameters) // layers
    for parameter in parameters[: frozen * each]:
        parameter.requires_grad_(False)
    x, h0 = torch.randn(4, 3, 8).to(dtype), torch.randn(layers, 3, 32).to(dtype)
    x.requires_grad_(not frozen)
    h0.requires_grad_(not frozen)
    launcher = ptx_launcher(seed=0, strong=True)
    torch.manual_seed(5)
    with using(launcher):
        results = module(x, h0)
        d_results = [torch.randn_like(result) for result in results]
        leaves = [leaf for leaf in (x, h0, *parameters) if leaf.requires_grad]
        got = [*results, *torch.autograd.grad(results, leaves, d_results)]
    torch.manual_seed(5)
    masks = [
        scaled(dropout_mask(torch.empty(4, 3, 32, dtype=dtype), dropout), dropout, dtype).double() if dropout else None
        for _ in range(layers - 1)
    ]
    exact = {leaf: leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in (x, h0, *parameters)}
    ends = [] if module.bias else [None, None]
    weights = [Weights(*(exact[p] for p in parameters[each * i : each * (i + 1)]), *ends) for i in range(layers)]
    wanted = reference.stack(exact[x], exact[h0], weights, variant=module.variant, masks=masks)
    grads = torch.autograd.grad(wanted, [exact[leaf] for leaf in leaves], [d.double() for d in d_results])
    return got, [*wanted, *grads], [launch["kernel"] for launch in launcher.launches]


@executed
@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({"layers": 3, "dropout": 0.25}, ["stacked_torch", "stacked_back_torch"]),
        ({"layers": 2, "variant": "cho"}, ["stacked_reset_first", "stacked_back_reset_first"]),
        # two frozen layers below, whose states are not kept
        ({"layers": 4, "frozen": 2, "dropout": 0.5}, ["stacked_torch", "stacked_torch", "stacked_back_torch"]),
        ({"layers": 2, "memory": "recompute"}, ["stacked_torch", "backward_torch", "backward_torch"]),
        pytest.param({"layers": 2, "bias": False}, ["stacked_torch", "stacked_back_torch"], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_modules_against_the_reference(options, kernels):
    got, wanted, launched = of_both(**options)
    assert launched == kernels
    assert max(map(error, got, wanted)) <= 4e-3


@executed
def test_where_layers_do_not_fit_together_auto_runs_them_one_after_another(monkeypatch):
    monkeypatch.setattr(plan, "_SHARED", set())
    launched = []

    def refuses_cooperation(kernel, grid, *args, cooperative, **options):
        launched.append(kernel.__name__)
        if cooperative:
            raise DoesNotFit("Triton Error [CUDA]: too many blocks in cooperative launch")
        ptx_launcher(arch=90)(kernel, grid, *args, cooperative=cooperative, **options)

    chosen = replace(stacked_config(torch.float16, 3, 32), layers=2)
    choice = Choice("persistent", "the fastest", chosen)
    monkeypatch.setattr(plan, "modelled", lambda layer, site, direction="forward": staged(2, 1, choice, direction))
    module = trigru.GRU(8, 32, 2, dropout=0.5, dtype=torch.float16)
    x, hx = (torch.randn(*shape, dtype=torch.float16, requires_grad=True) for shape in ((4, 3, 8), (2, 3, 32)))
    torch.manual_seed(5)
    refused = pytest.warns(RuntimeWarning, match="'persistent' does not fit on cpu")
    with using(refuses_cooperation):
        with refused:
            output, h_n = module(x, hx)
        loss = output.float().sum() + h_n.float().sum()
        with refused:
            grads = torch.autograd.grad(loss, [x, hx, *module.parameters()])
    assert launched[0] == "stacked_torch"
    assert "stacked_back_torch" in launched
    torch.manual_seed(5)
    mask = scaled(dropout_mask(torch.empty(4, 3, 32, dtype=torch.float16), 0.5), 0.5, torch.float16).double()
    exact = [p.detach().double().requires_grad_() for p in (x, hx, *module.parameters())]
    weights = [Weights(*exact[2:6]), Weights(*exact[6:])]
    wanted = reference.stack(*exact[:2], weights, variant="torch", masks=[mask])
    of_reference = torch.autograd.grad(wanted[0].sum() + wanted[1].sum(), exact)
    assert max(map(error, (output, h_n, *grads), (*wanted, *of_reference))) <= 4e-3
