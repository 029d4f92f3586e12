"""The package as it is distributed: what the wheel and the source archive hold, and that the wheel alone works."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("ray", "vllm", "wandb", "tensorboard", "trackio", "vl-convert-python", "matplotlib", "selenium")
"""Belong to extras."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, made from a copy: building writes beside the sources."""
    folder, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source") / "gopd"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        target = copy / name
        if name.startswith(
            ("src/", "docs/notebooks/", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in")
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    script = "import sys\nfrom setuptools import build_meta\nfolder = sys.argv[1]\n"
    script += "build_meta.build_wheel(folder)\nbuild_meta.build_sdist(folder)\n"
    command = [sys.executable, "-W", "ignore", "-c", script, str(folder)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def sources() -> set[str]:
    """Everything under src/ that is no test and no leftover, as the package has it."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "src"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    return {name.removeprefix("src/") for name in tracked.decode().split("\0") if name}


def test_the_wheel_holds_every_source_the_data_and_the_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert sources() <= names
    assert {"gopd/py.typed", "gopd/tiny/train.parquet", "gopd/report/static/page.css"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith(("gopd/", "gopd-")) for name in names)


def test_the_source_archive_holds_them_too(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {f"src/{name}" for name in sources()} | {"LICENSE", "pyproject.toml", "README.md"} <= names
    assert {f"docs/notebooks/{name}.ipynb" for name in ("first-run", "objective")} <= names


def test_the_core_needs_nothing_heavy(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(file.read(name))
    needs = metadata.get_all("Requires-Dist") or []
    core = [line for line in needs if "extra ==" not in line]
    assert core and not [line for line in core if line.lower().startswith(HEAVY)]
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert {"vllm", "ray", "eval", "report", "wandb", "tensorboard", "trackio", "gguf"} <= extras
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.11"


SIZES = ("train.steps=1", "train.prompts_per_step=4", "validation.limit=4", "validation.teachers=false")


def trains(command: list[str], folder: Path) -> None:
    """One step of the quickstart, run in a folder where only its recipe is."""
    (folder / "recipe.yaml").write_text((ROOT / "recipes" / "quickstart.yaml").read_text())
    done = subprocess.run(
        [*command, "train", "recipe.yaml", *SIZES],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "recipe" / "student" / "model.safetensors").is_file()


def installed(wheel: Path, folder: Path, python: str, *arguments: str | Path) -> Path:
    """The folder of commands of a new environment, with the wheel in it as pip installs it."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", wheel, *arguments], check=True)
    return folder / "bin"


def test_the_installed_wheel_trains(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, but for the dependencies, which are those of this one."""
    binaries = installed(wheel, tmp_path / "venv", sys.executable, "--no-deps")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    code = "import gopd; print(gopd.__file__)"
    where = subprocess.check_output([binaries / "python", "-c", code], cwd=tmp_path, text=True)
    assert where.startswith(str(site))
    trains([str(binaries / "gopd")], tmp_path)


def interpreter(version: str) -> str:
    """A Python of that version, from the path or from pyenv."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (sys.executable, f"python{version}", *map(str, installed)):
        code = "import sys; print(*sys.version_info[:2], sep='.')"
        try:
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if done.stdout.strip() == version:
            return candidate
    pytest.skip(f"there is no Python {version} here")


@pytest.mark.nightly
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_installs_and_trains_in_an_empty_environment(
    wheel: Path, version: str, tmp_path: Path
) -> None:
    """Some minutes and, where the index has CUDA builds of PyTorch only, several GB each."""
    binaries = installed(wheel, tmp_path / "venv", interpreter(version), "torch==2.13.0")
    trains([str(binaries / "gopd")], tmp_path)
