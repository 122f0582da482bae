"""What was measured of layers on devices. In `trigru.planning.plan` a winner overrules what the model predicts.

`TABLE` is filled by `trigru.tune`, under torch.backends.cudnn.benchmark by the first call of a new shape, and from
files while the package is imported: those in TUNED, and the one that TRIGRU_TUNED in the environment names. Nobody has
measured for the package yet, so none is there.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..kernels.config import PersistentConfig, ResidentConfig, StepwiseConfig, WalkingConfig
from ..layer import Layer
from .configs import EagerConfig
from .devices import cpu_model, slug

if TYPE_CHECKING:
    from .plan import Site

TUNED = Path(__file__).parent / "tuned"
"""Tables that come with the package, or that `trigru tune --write` has put there."""

VARIABLE = "TRIGRU_TUNED"
CONFIGS: dict[str, type] = {
    "eager": EagerConfig,
    "stepwise": StepwiseConfig,
    "walking": WalkingConfig,
    "resident": ResidentConfig,
    "persistent": PersistentConfig,
}
MICRO = 1e6


class Key(NamedTuple):
    """What a measurement is valid for. Sizes named `_to` stand for all from half of it, exclusive, up to it."""

    device: str
    versions: str  # of trigru, torch and Triton
    dtype: str
    precision: str  # how float32 is multiplied
    variant: str
    memory: str
    bias: bool
    dropout: bool  # between layers
    num_layers: int
    directions: str  # "forward", "reverse" or "both"
    input_to: int
    hidden_size: int
    batch: int
    steps_to: int
    packed: bool
    batch_first: bool
    recording: bool  # forward keeps what backward needs
    direction: str  # the pass, "forward" or "backward"
    heads: int = 1  # files of before there were heads do not say


class Row(NamedTuple):
    """A candidate: what it is, and what it took."""

    schedule: str
    config: Any  # of CONFIGS, or None
    seconds: float

    @property
    def name(self) -> str:
        """The schedule, with what of its tiles is not as usual."""
        if self.config is None:
            return repr(self.schedule)
        usual = type(self.config)()
        told = [
            f"{field.name} {value}"
            for field in fields(self.config)
            if (value := getattr(self.config, field.name)) != getattr(usual, field.name)
        ]
        return f"{self.schedule!r} ({', '.join(told)})" if told else repr(self.schedule)


class Entry(NamedTuple):
    """The candidates that were right, the fastest first, and why others were refused."""

    rows: tuple[Row, ...]
    refused: dict[str, str]

    def said(self, key: Key) -> str:
        """The figures, and where they are from."""
        rows = [f"{row.name} {row.seconds * MICRO:.1f} us" for row in self.rows]
        rows[0] += f" a {unit(key)}"
        refused = [f"{name} refused: {why}" for name, why in self.refused.items()]
        return f"measured on {key.device}: {'; '.join([*rows, *refused])}"


def unit(key: Key) -> str:
    """What was timed."""
    return "training step" if key.recording else "call without gradients"


TABLE: dict[Key, Entry] = {}


@functools.cache
def versions() -> str:
    """Of what a time depends on: trigru, torch and Triton."""
    from .. import __version__

    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    short = [re.sub(r"^(\d+\.\d+).*", r"\1", version) for version in (torch.__version__, triton)]
    return f"trigru {__version__}, torch {short[0]}, triton {short[1]}"


def device_name(device: torch.device) -> str:
    """A GPU's name; of a CPU the number of threads too."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).name)
    return f"{cpu_model()}, {torch.get_num_threads()} threads"


def key_of(layer: Layer, site: Site, direction: str, precision: str, name: str | None = None) -> Key:
    """The key of a layer's calls. name: of a device that need not be there."""
    return Key(
        device=device_name(site.device) if name is None else name,
        versions=versions(),
        dtype=str(site.dtype).removeprefix("torch."),
        precision=precision if site.device.type == "cuda" else "ieee",
        variant=layer.variant,
        memory=layer.memory,
        bias=layer.bias,
        dropout=layer.dropout > 0,
        num_layers=layer.num_layers,
        directions="both" if layer.bidirectional else "reverse" if layer.reverse else "forward",
        input_to=_up_to(layer.input_size),
        hidden_size=layer.hidden_size,
        batch=site.batch,
        steps_to=_up_to(site.seq_len),
        packed=site.packed,
        batch_first=layer.batch_first and not site.packed,
        recording=site.recording or direction == "backward",
        direction=direction,
        heads=layer.num_heads,
    )


def _up_to(size: int) -> int:
    """The smallest power of two that is at least so much."""
    return 1 << (size - 1).bit_length()


def key_at_hand(layer: Layer, site: Site, direction: str, precision: str) -> Key:
    """`key_of`, remembered."""
    return _key(layer, site, direction, precision, torch.get_num_threads() if site.device.type == "cpu" else 0)


@functools.lru_cache(maxsize=1024)
def _key(layer: Layer, site: Site, direction: str, precision: str, threads: int) -> Key:
    return key_of(layer, site, direction, precision)


def of_preset(name: str, key: Key) -> tuple[Key, Entry] | None:
    """What was measured on a GPU whose name has that of a preset in it."""
    for known, entry in TABLE.items():
        if known._replace(device=key.device) == key and re.search(rf"\b{re.escape(name)}\b", known.device):
            return known, entry
    return None


def store(path: Path, entries: Mapping[Key, Entry]) -> None:
    """Add entries to a file, in place of those of the same keys. Whatever fails, the file is the old or the new one.

    Raises:
        OSError: it cannot be written.
        ValueError: something else is there.
    """
    known = read(path) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([flat(*item) for item in {**known, **entries}.items()], indent=1) + "\n"
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as room:
        new = Path(room) / path.name
        new.write_text(text, encoding="utf-8")
        new.replace(path)


def flat(key: Key, entry: Entry) -> dict[str, Any]:
    rows = [{**row._asdict(), "config": None if row.config is None else asdict(row.config)} for row in entry.rows]
    return {"key": key._asdict(), "rows": rows, "refused": entry.refused}


def read(path: Path) -> dict[Key, Entry]:
    """The entries of a file.

    Raises:
        OSError, ValueError: it cannot be read, or is something else.
    """
    try:
        return {
            Key(**one["key"]): Entry(tuple(_row(**row) for row in one["rows"]), dict(one["refused"]))
            for one in json.loads(path.read_text(encoding="utf-8"))
        }
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path}: expected a table that trigru tune has written: {error}") from None


def _row(schedule: str, config: dict[str, Any] | None, seconds: float) -> Row:
    return Row(schedule, None if config is None else CONFIGS[schedule](**config), float(seconds))


def place(device: torch.device) -> Path:
    """Where `trigru tune --write` stores what it has measured on a device: TRIGRU_TUNED, or the package's own."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else TUNED / f"{slug(device_name(device)).replace(',', '').replace('/', '-')}.json"


def load() -> None:
    """Take what files say into TABLE. A file that cannot be read is left out, with a warning."""
    named = os.environ.get(VARIABLE)
    for path in (*sorted(TUNED.glob("*.json")), *([Path(named)] if named else [])):
        try:
            TABLE.update(read(path))
        except FileNotFoundError:  # the one that is yet to be written
            continue
        except (OSError, ValueError) as error:
            warnings.warn(f"trigru: what was measured is not read: {error}", RuntimeWarning, stacklevel=2)


load()
