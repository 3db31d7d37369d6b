"""What is installed, and from which one list."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import yaml

from launch.queueing import PACKAGES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def test_conda_installs_pyprojects_list_and_nothing_else() -> None:
    """One list of dependencies: conda brings the interpreter, pip the project with its list."""
    *conda, pip = ENVIRONMENT["dependencies"]
    assert [entry.split("=")[0] for entry in conda] == ["python", "pip"]
    assert pip == {"pip": ["--editable .[dev]"]}
    assert "dev" in PROJECT["optional-dependencies"]


def test_conda_brings_a_python_that_the_project_takes() -> None:
    """environment.yml names a version that requires-python admits."""
    (version,) = re.findall(r"python=(\d+\.\d+)", str(ENVIRONMENT["dependencies"]))
    least = PROJECT["requires-python"].removeprefix(">=")
    assert [*map(int, version.split("."))] >= [*map(int, least.split("."))]


def test_every_import_is_a_declared_dependency() -> None:
    """A fresh environment has whatever the code imports."""
    distributions = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}
    entries = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["onnx"]
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
    assert {distributions.get(name, name) for name in third_party} == declared
