"""What pip makes of a checkout: an editable install, the wheel, the sdist, and a checkout whose links are files.
Each is imported from the folder that the checkout lies in, and seen by type checkers as a user's file sees it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", "out", "build", "dist", ".*_cache", "__pycache__", "*.egg-info", "results")
BUILD = importlib.util.spec_from_file_location("build_release", ROOT / "scripts/build_release.py")
# Beside its modules: what the package reads, what tells of it, and how it is built.
DATA = {"trigru/py.typed"}
BESIDE = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}
LINKS = ("src/trigru", "trigru/kernels", "trigru/bench")
USERS_FILE = """
import torch
import trigru
import trigru.convert
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = trigru.GRU(3, 4, num_layers=2, batch_first=True, variant="cho", schedule="auto", memory="recompute")
        self.cell = trigru.GRUCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        output, h_n = self.gru(x)
        total: Tensor = output.sum() + h_n.sum() + self.cell(x[:, 0]).sum()
        return total


model = trigru.swap(Model())
print(trigru.explain(model.gru, torch.randn(2, 5, 3)).reason)
packed, h_n = model.gru(pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]))
output, h = trigru.gru(torch.randn(5, 2, 3), torch.zeros(2, 4), torch.randn(12, 3), torch.randn(12, 4), variant="chung")
print(trigru.VARIANTS, packed.data.shape, output.shape, trigru.KernelTimeout)
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="building needs the package build"),
]


def run(*command, cwd=None, ok=True):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0 or not ok, done.stdout + done.stderr
    return done


def packages(folder):
    """Modules of the package in the checkout, as paths that begin with trigru/."""
    found = {path.relative_to(folder) for path in (folder / "trigru").glob("**/*.py")}
    for name in ("kernels", "bench"):
        found |= {Path("trigru", path.relative_to(folder)) for path in (folder / name).glob("**/*.py")}
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def tables(folder):
    """What was fitted and measured, as paths that begin with trigru/."""
    found = (folder / "trigru" / "planning").glob("*/*.json")
    return {path.relative_to(folder).as_posix() for path in found}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A checkout's files in a folder named trigru, with its links."""
    folder = tmp_path_factory.mktemp("src") / "trigru"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=LEFT_OUT)
    return folder


@pytest.fixture(scope="module")
def built(clone, tmp_path_factory):
    """The sdist of the checkout, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, clone)
    return SimpleNamespace(sdist=next(out.glob("*.tar.gz")), wheel=next(out.glob("*.whl")))


@pytest.fixture(scope="module", params=["editable", "wheel", "sdist"])
def installed(request, clone, tmp_path_factory):
    """An environment with trigru installed in one way, and torch taken from the environment of this process."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (site / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n{Path(torch.__file__).parents[1]}\n")
    what = ["--editable", clone]
    if request.param != "editable":
        what = [getattr(request.getfixturevalue("built"), request.param)]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--force-reinstall", *what)
    return SimpleNamespace(python=python, site=site, way=request.param)


def test_the_wheel_has_every_module_as_a_file(built, clone):
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if not name.startswith("trigru-")}
        metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        text = wheel.read(metadata).decode()
    assert {name for name in names if name.endswith(".py")} == packages(clone)
    assert {"trigru/kernels/stepwise.py", "trigru/bench/report/figures.py"} <= names
    assert {name for name in names if not name.endswith(".py")} == DATA | tables(clone)
    assert "](https://raw.githubusercontent.com/" in text
    assert "](docs/" not in text
    assert "](#" not in text


def test_the_sdist_has_every_module_as_a_file(built, clone):
    with tarfile.open(built.sdist) as sdist:
        members = [member for member in sdist if not member.isdir()]
    assert all(member.isfile() for member in members), "links"
    names = {Path(*Path(member.name).parts[1:]).as_posix() for member in members}
    assert {
        name.removeprefix("src/") for name in names if name.startswith("src/") and name.endswith(".py")
    } == packages(clone)
    others = {name for name in names if not name.endswith(".py") and ".egg-info/" not in name}
    assert {name.removeprefix("src/") for name in others | {"setup.py"}} == BESIDE | DATA | tables(clone)


def test_both_are_the_same_bytes_from_another_folder_at_another_time(clone, tmp_path):
    release = importlib.util.module_from_spec(BUILD)
    BUILD.loader.exec_module(release)
    found = []
    for name in ("one", "another"):
        folder = tmp_path / name / "trigru"
        shutil.copytree(clone, folder, symlinks=True, copy_function=shutil.copy)  # with the time of now
        paths = release.build(folder, tmp_path / name / "dist", 1_750_000_000, "--no-isolation")
        found.append([(path.name, path.read_bytes()) for path in paths])
        time.sleep(2.1)  # a zip file counts in steps of two seconds
    assert [name for name, _ in found[0]] == [name for name, _ in found[1]]
    for (name, first), (_, second) in zip(*found, strict=True):
        assert first == second, name


def test_links_that_came_out_as_files(clone, tmp_path):
    """As git on Windows writes them without core.symlinks: the same wheel."""
    folder = tmp_path / "trigru"
    shutil.copytree(clone, folder, symlinks=True)
    for name in LINKS:
        target = os.readlink(folder / name)
        (folder / name).unlink()
        (folder / name).write_text(target)
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, folder)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if name.endswith(".py")}
    assert names == packages(clone)


def test_it_is_imported_from_the_folder_of_the_clone(installed, clone):
    code = "import trigru, trigru.kernels.stepwise, trigru.bench.run; print(trigru.GRU, trigru.__file__)"
    shown = run(installed.python, "-c", code, cwd=clone.parent).stdout
    assert "<class 'trigru.modules.GRU'>" in shown
    assert (str(installed.site) in shown) == (installed.way != "editable")
    assert run(installed.python, "-m", "trigru", "--version", cwd=clone.parent).stdout.startswith("trigru ")


def test_an_editable_install_makes_nothing_else_importable(installed, clone, tmp_path):
    if installed.way != "editable":
        pytest.skip("about an editable install")
    for name in ("kernels", "bench"):
        code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
        found = run(installed.python, "-c", code, cwd=tmp_path).stdout  # others have packages of such names
        assert str(clone) not in found


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


def checked(checker, installed, text, tmp_path, caches):
    """What a type checker says of a user's file."""
    file = tmp_path / "users.py"
    file.write_text(text)
    if checker == "mypy":
        pytest.importorskip("mypy", reason="mypy comes with the extra dev")
        options = [
            "--strict",
            "--python-executable",
            installed.python,
            "--cache-dir",
            caches,
            "--config-file",
            os.devnull,
        ]
        return run(sys.executable, "-m", "mypy", *options, file, cwd=tmp_path, ok=False)
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not on the path: npm install pyright, and its folder node_modules/.bin")
    return run(pyright, "--pythonpath", installed.python, file, cwd=tmp_path, ok=False)


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_see_it(checker, installed, tmp_path, caches):
    done = checked(checker, installed, USERS_FILE, tmp_path, caches)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_find_what_is_not_there(checker, installed, tmp_path, caches):
    """So they do look: an unknown name, and an argument of the wrong type, or none of its values."""
    wrong = ("trigru.no_such_name", "trigru.GRU('three', 4)", "trigru.GRU(3, 4, variant='nonsense')")
    done = checked(checker, installed, "\n".join(["import trigru", *wrong, ""]), tmp_path, caches)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [int(number) for number in re.findall(r"users\.py:(\d+):.*\berror\b", done.stdout)]
    assert sorted(set(lines)) == [2, 3, 4], done.stdout + done.stderr
