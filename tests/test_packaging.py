"""The wheel holds the package and nothing else, and the documents suit any machine."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePath

import pytest

import zegclip

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parent.parent
DIST_INFO = f"zegclip-{zegclip.__version__}.dist-info"
FOLDERS = ["zegclip", "modeling", "processing", "picture_world", "model_cards", "configs"]
SOURCES = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", *FOLDERS]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for name in ("docs", "model_cards", "examples") for path in ROOT.glob(f"{name}/**/*.md")),
]
DOCUMENTS += [*ROOT.glob("benchmarks/results/*.json"), *ROOT.glob("examples/*.ipynb"), ROOT / "CITATION.cff"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that no build folder is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, folder], check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_every_file_of_the_package_and_no_other(wheel):
    files = {
        f"zegclip/{folder}/{path.relative_to(ROOT / folder).as_posix()}".replace("/zegclip/", "/", 1)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"  # for the repository
    }
    assert {name for name in wheel.namelist() if not name.startswith(DIST_INFO)} == files
    suffixes = {path.suffix for path in map(PurePath, files) if "default_model" in path.parts}
    assert suffixes >= {".json", ".safetensors"}


def run_installed(wheel, tmp_path, *words):
    wheel.extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-m", "zegclip", *map(str, words)]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_training_works_from_the_wheel(wheel, tmp_path):
    """The configuration is found by its name, from any folder; the missing data set shows that it has been read."""
    model = tmp_path / "installed" / "zegclip" / "default_model"
    words = ("train", "zegclip_voc_inductive", "--data_dir", "nowhere", "--model", model, "--use_cpu")
    run = run_installed(wheel, tmp_path, *words)
    assert run.returncode == 1
    assert "nowhere" in run.stderr.splitlines()[-1]


def test_the_embedded_model_is_exported_from_the_wheel_with_its_card(wheel, tmp_path):
    run = run_installed(wheel, tmp_path, "export", tmp_path / "installed" / "zegclip" / "default_model", "shared")
    assert run.returncode == 0, run.stderr
    title = (
        (ROOT / "model_cards" / "default_model.md").read_text(encoding="utf-8").partition("\n# ")[2].splitlines()[0]
    )
    assert f"# {title}\n" in (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")


def test_wheel_metadata(wheel):
    metadata = wheel.read(f"{DIST_INFO}/METADATA").decode()
    assert f"\nVersion: {zegclip.__version__}\n" in metadata
    assert "Apache-2.0" in metadata
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_no_machine_paths(path):
    assert re.findall(r"(?:/work/|/root/|/home/|/Users/|file://)\S*", path.read_text(encoding="utf-8")) == []
