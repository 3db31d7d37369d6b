"""What is installed, and from which one list."""

import ast
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launch.queueing import PACKAGES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("file", "project"), [("environment.yml", "."), ("environment-dev.yml", ".[dev]")]
)
def test_conda_brings_python_and_pip_the_rest(file: str, project: str) -> None:
    """One list of dependencies, pyproject.toml's, and one of tested releases."""
    *conda, pip = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    python, with_pip = conda
    assert with_pip == "pip"
    assert pip == {"pip": ["--constraint constraints.txt", f"--editable {project}"]}
    least = PROJECT["requires-python"].removeprefix(">=")
    assert numbers(python.removeprefix("python=")) >= numbers(least)


def numbers(version: str) -> list[int]:
    """3.12 -> [3, 12]."""
    return [*map(int, version.split("."))]


def test_the_tested_releases_are_ones_that_the_project_takes() -> None:
    entries = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    asked = {entry.name: entry.specifier for entry in map(Requirement, entries)}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {"torch", "torchvision"} <= {entry.name for entry in tested}
    for entry in tested:
        (release,) = entry.specifier
        assert asked.get(entry.name, SpecifierSet()).contains(release.version), entry


def test_every_import_is_a_declared_dependency() -> None:
    """A fresh environment has whatever the code imports."""
    distributions = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}
    distributions["openslide"] = "openslide-python"
    distributions["huggingface_hub"] = "huggingface-hub"
    distributions["segmentation_models_pytorch"] = "segmentation-models-pytorch"
    extras = PROJECT["optional-dependencies"]
    entries = PROJECT["dependencies"] + extras["onnx"] + extras["slides"] + extras["sweep"]
    declared = {re.split(r"[<>=]", entry)[0] for entry in entries}
    ours = {path.stem for path in ROOT.iterdir()}
    imported = set()
    for package in PACKAGES:
        path = ROOT / package
        for file in [path] if path.is_file() else path.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.split(".")[0])
    third_party = imported - ours - sys.stdlib_module_names
    third_party.add("tensorboard")  # which torch.utils.tensorboard imports
    third_party |= {"onnx", "onnxscript"}  # which torch.onnx imports
    third_party.add("openslide-bin")  # which openslide-python loads
    assert {distributions.get(name, name) for name in third_party} == declared
