"""What people run: 31 configurations of public repositories, one or more GRUs each, with their sizes.

Read in the files that are named. Where these leave something open (a range, a size that depends on the data), `chosen`
says what stands here instead. Every GRU gets an input of its own: what a model does between two of them is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trigru.layer import Layer

ROWS = ("padded", "packed", "resets", "decayed")
"""padded: every sequence has all steps. packed: lengths from 1 to all steps. resets: the state is set to zero in the
middle of a sequence, at a share of all steps. decayed: before each step the state is multiplied by numbers below 1."""
RESET_EVERY = 50


@dataclass(frozen=True)
class Gru:
    """A GRU and its input's sizes. rows: one of ROWS; reset_rate: of "resets", the share of steps. cell: its users call
    it a step at a time, for a step's input depends on the state before it or is decayed. calls: so many alike."""

    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    variant: str = "torch"
    bias: bool = True
    dropout: float = 0.0
    rows: str = "padded"
    cell: bool = False
    calls: int = 1
    reset_rate: float = 1 / RESET_EVERY

    @property
    def directions(self) -> int:
        """Directions of time."""
        return 2 if self.bidirectional else 1

    @property
    def by_steps(self) -> bool:
        """Whether trigru too is called a step at a time: a layer takes decays, for which nn.GRU's users need a cell."""
        return self.cell and self.rows != "decayed"

    @property
    def given(self) -> tuple[str, ...]:
        """What trigru's layer is given for each step, by the names of a plan; a cell takes nothing of the kind."""
        names = {"resets": ("reset",), "decayed": ("decay",)}
        return () if self.by_steps else names.get(self.rows, ())

    @property
    def layer(self) -> Layer:
        """What is static of it, as trigru's planner takes it."""
        return Layer(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            variant=self.variant,
        )

    @property
    def operations(self) -> int:
        """Multiplications and additions of the products of all its forward passes."""
        inputs = [self.input_size] + [self.directions * self.hidden_size] * (self.num_layers - 1)
        a_row = sum(2 * 3 * self.hidden_size * (size + self.hidden_size) for size in inputs)
        return self.calls * self.directions * self.seq_len * self.batch * a_row

    @property
    def serial_steps(self) -> int:
        """Steps of all its layers and directions, one after another."""
        return self.calls * self.num_layers * self.directions * self.seq_len

    def at_most(self, seq_len: int, batch: int | None = None, size: int | None = None) -> Gru:
        """The same with sizes that are no larger."""
        return replace(
            self,
            seq_len=min(seq_len, self.seq_len),
            batch=min(batch or self.batch, self.batch),
            input_size=min(size or self.input_size, self.input_size),
            hidden_size=min(size or self.hidden_size, self.hidden_size),
        )


@dataclass(frozen=True)
class Workload:
    """A model's GRUs. dtype: "fp32" (which a GPU multiplies in TF32, as torch's RNNs do by default), "fp16" or "bf16".
    training: else inference."""

    row: int
    name: str
    source: str
    grus: tuple[Gru, ...]
    dtype: str = "fp32"
    training: bool = True
    chosen: str = ""

    @property
    def main(self) -> Gru:
        """The one with the most to compute: the sizes in a table."""
        return max(self.grus, key=lambda gru: gru.operations / gru.calls)

    @property
    def each(self) -> list[Gru]:
        """The GRUs, alike ones as often as they are called."""
        return [replace(gru, calls=1) for gru in self.grus for _ in range(gru.calls)]

    @property
    def variants(self) -> set[str]:
        """The equations of its GRUs."""
        return {gru.variant for gru in self.grus}

    @property
    def rows(self) -> str:
        """How the main GRU's sequences lie."""
        return self.main.rows

    def at_most(self, seq_len: int, batch: int | None = None, size: int | None = None) -> Workload:
        """The same with sizes that are no larger."""
        return replace(self, grus=tuple(gru.at_most(seq_len, batch, size) for gru in self.grus))

    def __str__(self) -> str:
        return self.name


def _rdovae() -> tuple[Gru, ...]:
    encoder = [Gru(200, 32, size, 32) for size in range(64, 449, 96)]
    decoder = [Gru(200, 32, size, 64) for size in range(96, 481, 96)]
    return (*encoder, *decoder)


RESETS = f"a reset in {RESET_EVERY} steps of a sequence"
WORKLOADS: tuple[Workload, ...] = (
    Workload(
        1,
        "brain-to-text",
        "Neuroprosthetics-Lab/nejm-brain-to-text model_training/rnn_args.yaml",
        (Gru(200, 64, 7168, 768, 5),),
        dtype="bf16",
        chosen="200 steps of 100 to 400",
    ),
    Workload(
        2,
        "speech-bci",
        "cffan/neural_seq_decoder conf/config.yaml",
        (Gru(200, 64, 8192, 1024, 5, bidirectional=True, dropout=0.4),),
        chosen="200 steps of 100 to 400",
    ),
    Workload(
        3,
        "deepfilternet3",
        "Rikorose/DeepFilterNet df/deepfilternet3.py",
        (Gru(300, 64, 256, 256), Gru(300, 64, 256, 256, 2, calls=2)),
    ),
    Workload(4, "rnnoise", "xiph/rnnoise torch/rnnoise/rnnoise.py", (Gru(1996, 128, 384, 384, calls=3),)),
    Workload(
        5,
        "gtcrn-inter",
        "Xiaobin-Rong/gtcrn gtcrn.py",
        (Gru(251, 528, 8, 8, calls=2),),
        chosen="4 s, as the intra-frame GRUs have; one block",
    ),
    Workload(
        6,
        "gtcrn-intra",
        "Xiaobin-Rong/gtcrn gtcrn.py",
        (Gru(33, 4016, 8, 4, bidirectional=True, calls=2),),
        chosen="one block",
    ),
    Workload(
        7,
        "opus-lpcnet",
        "xiph/opus dnn/torch/lpcnet/utils/templates.py",
        (Gru(2400, 256, 512, 384), Gru(2400, 256, 512, 64)),
        chosen="512 inputs; dense weights",
    ),
    Workload(
        8,
        "opus-rdovae",
        "xiph/opus dnn/torch/rdovae/rdovae/rdovae.py",
        _rdovae(),
        chosen="200 steps and 96 to 480 inputs of the decoder",
    ),
    Workload(9, "opus-plc", "xiph/opus dnn/torch/plc/train_plc.py", (Gru(15, 512, 128, 128, calls=2),)),
    Workload(
        10,
        "opus-fargan",
        "xiph/opus dnn/torch/fargan/fargan.py",
        tuple(Gru(60, 512, i, h, bias=False, cell=True) for i, h in ((272, 160), (160, 128), (128, 128))),
    ),
    Workload(
        11,
        "piano-transcription",
        "bytedance/piano_transcription pytorch/models.py",
        (
            Gru(1001, 12, 768, 256, 2, bidirectional=True, calls=4),
            Gru(1001, 12, 176, 256, bidirectional=True),
            Gru(1001, 12, 264, 256, bidirectional=True),
        ),
        chosen="one layer of the two heads",
    ),
    Workload(
        12,
        "rmvpe",
        "RVC-Project infer/rmvpe.py",
        (Gru(1000, 1, 384, 256, bidirectional=True),),
        training=False,
        chosen="10 s of sound",
    ),
    Workload(
        13,
        "dcase-crnn",
        "DESED_task recipes/dcase2023_task4_baseline/confs/default.yaml",
        (Gru(156, 48, 128, 128, 2, bidirectional=True),),
    ),
    Workload(
        14,
        "speechbrain-vad",
        "speechbrain recipes/LibriParty/VAD/hparams/train.yaml",
        (Gru(500, 2, 640, 32, 2, bidirectional=True),),
        chosen="640 inputs of 64 times the filters",
    ),
    Workload(
        15,
        "speechbrain-timit",
        "speechbrain recipes/TIMIT/ASR/CTC/hparams/train.yaml",
        (Gru(300, 8, 1024, 512, 4, bidirectional=True),),
        chosen="a GRU in place of the Li-GRU; 300 steps, 1024 inputs",
    ),
    Workload(
        16,
        "guitar-amp",
        "Alec-Wright/Automated-GuitarAmpModelling Configs/RNN2.json",
        (Gru(1000, 50, 1, 16),),
        chosen="one chunk of truncated back-propagation",
    ),
    Workload(
        17,
        "lfads",
        "arsedler9/lfads-torch configs/model/nlb_dmfc_rsg.yaml",
        (
            Gru(300, 256, 40, 100, bidirectional=True, variant="cho"),
            Gru(340, 256, 240, 64, variant="cho", cell=True),
            Gru(340, 256, 4, 100, variant="cho", cell=True),
        ),
        chosen="one encoder; 240 inputs of the controller, 4 of the generator; states are not clamped",
    ),
    Workload(
        18,
        "medaka",
        "nanoporetech/medaka architectures/gru.py",
        (Gru(10000, 100, 10, 128, 2, bidirectional=True),),
        dtype="fp16",
        training=False,
        chosen="hidden_size 128 of 128 and 256",
    ),
    Workload(
        19,
        "qlib",
        "microsoft/qlib examples/benchmarks/GRU",
        (Gru(60, 800, 6, 64, 2), Gru(20, 800, 20, 64, 2)),
        chosen="a batch of Alpha360, then one of Alpha158",
    ),
    Workload(
        20,
        "neuralforecast",
        "Nixtla/neuralforecast models/gru.py",
        (Gru(72, 128, 1, 200, 2),),
        chosen="3 times a horizon of 24 steps",
    ),
    Workload(
        21,
        "gru-d",
        "WenjieDu/PyPOTS nn/modules/grud/backbone.py",
        (Gru(48, 32, 35, 32, rows="decayed", cell=True),),
        chosen="32 sequences",
    ),
    Workload(22, "eigenworms", "machine-discovery/deer experiments/04", (Gru(17984, 4, 32, 32, 5),)),
    Workload(
        23,
        "gru4rec-recbole",
        "RUCAIBox/RecBole properties/model/GRU4Rec.yaml",
        (Gru(50, 2048, 64, 128, bias=False),),
        chosen="the gradient of every step, not of the last valid one alone",
    ),
    Workload(
        24,
        "gru4rec",
        "hidasib/GRU4Rec_PyTorch_Official paramfiles",
        (Gru(1, 240, 512, 512, rows="resets", cell=True),),
        chosen=f"240 of 240, 144 and 32 sequences; {RESETS}",
    ),
    Workload(
        25,
        "mappo-smac",
        "marlbenchmark/on-policy config.py",
        (Gru(10, 2560, 64, 64, rows="resets"),),
        chosen=RESETS,
    ),
    Workload(
        26,
        "sample-factory",
        "alex-petrenko/sample-factory algo/learning/rnn_utils.py",
        (Gru(32, 32, 512, 512, rows="resets"),),
        chosen=RESETS,
    ),
    Workload(
        27,
        "habitat-ppo",
        "facebookresearch/habitat-lab rl/models/rnn_state_encoder.py",
        (Gru(128, 3, 512, 512, rows="resets"),),
        chosen=f"512 inputs; {RESETS}",
    ),
    Workload(
        28,
        "rsl-rl",
        "leggedrobotics/rsl_rl storage/rollout_storage.py",
        (Gru(24, 1024, 48, 256, rows="resets"),),
        chosen=f"a quarter of 4,096 environments, 48 observations; {RESETS}",
    ),
    Workload(
        29,
        "dreamerv3",
        "danijar/dreamerv3 rssm.py",
        (Gru(64, 16, 2048, 2048, cell=True),),
        dtype="bf16",
        chosen="2,048 units of 2,048 to 8,192, dense; 2,048 inputs",
    ),
    Workload(
        30,
        "moses-vae",
        "molecularsets/moses vae/config.py",
        (Gru(60, 512, 158, 512, 3, rows="packed"),),
        chosen="60 steps at most, 30 characters",
    ),
    Workload(
        31,
        "vibe-kernelbench",
        "mkocabas/VIBE configs/config.yaml, ScalingIntelligence/KernelBench level3/39_GRU.py",
        (Gru(16, 32, 2048, 1024, 2), Gru(512, 10, 128, 256, 6), Gru(512, 10, 128, 256, 6, bidirectional=True)),
        chosen="a call of VIBE's, then of KernelBench's 39 and 41",
    ),
)

ROLLOUT = Workload(
    32,
    "rollout",
    "pytorch/rl torchrl/modules/tensordict_module/rnn.py",
    (Gru(128, 128, 256, 256, rows="resets", reset_rate=0.03),),
    chosen="all sizes, and the share of steps with a reset: 3 %",
)
"""Nobody's configuration, so it is measured where it is asked for: 128 environments of which most begin anew."""


def named(asked: Sequence[str]) -> list[Workload]:
    """The workloads of these names or numbers of rows, in the order in which they were asked for; ROLLOUT is one.

    Raises:
        ValueError: there is none of a name.
    """
    there = (*WORKLOADS, ROLLOUT)
    known = {key: workload for workload in there for key in (workload.name, str(workload.row))}
    if missing := [name for name in asked if name not in known]:
        raise ValueError(f"expected 1 to {len(there)} or one of {', '.join(map(str, there))}, got {missing[0]}")
    return [known[name] for name in asked]
