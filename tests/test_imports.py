"""Imports point one way: model and data_prep <- train; launch reaches the rest from outside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = {"command_line", "json_lines", "lease", "memory", "plain_yaml", "seeds", "written"}
PACKAGES = ("data_prep", "model", "train", "launch")
OURS = {*PACKAGES, *SHARED, "tests"}

# Who may import whom; launch calls the rest by command line, or by a late import inside a job
ALLOWED = {
    "command_line": {"plain_yaml"},
    "json_lines": set(),
    "memory": set(),
    "plain_yaml": set(),
    "seeds": set(),
    "lease": {"command_line"},
    "written": {"command_line"},
    "data_prep": SHARED,
    "model": SHARED,
    "train": {*SHARED, "data_prep", "model"},
    "launch": {*SHARED, "data_prep", "train"},
}

# What takes long to load, of which the settings of a command need nothing
SLOW = {
    "data_prep": {"numpy", "cv2", "tifffile", "data_prep.prepare"},
    "train": {"numpy", "torch", "train.trainer"},
}


def sources(owner: str) -> list[Path]:
    return [ROOT / f"{owner}.py"] if owner in SHARED else sorted((ROOT / owner).rglob("*.py"))


def imported_modules(path: Path) -> dict[str, int]:
    """Every module that a file imports, inside functions too -> the line."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found[module] = node.lineno
            found |= {f"{module}.{alias.name}": node.lineno for alias in node.names}
    return found


@pytest.mark.parametrize("owner", ALLOWED)
def test_a_package_imports_of_ours_only_what_it_may(owner: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(owner)
        for module, line in imported_modules(path).items()
        if module.split(".")[0] in OURS - ALLOWED[owner] - {owner}
    ]
    assert not wrong


def test_only_command_line_hands_values_to_omegaconf() -> None:
    """It keeps texts from being resolved; others take no more than the sign of a missing value."""
    others = {*ALLOWED} - {"command_line"}
    modules = {
        module for owner in others for path in sources(owner) for module in imported_modules(path)
    }
    assert {name for name in modules if name.startswith("omegaconf.")} == {"omegaconf.MISSING"}


@pytest.mark.parametrize("owner", ["data_prep", "model", "train"])
def test_the_packages_that_the_rule_is_about_are_there(owner: str) -> None:
    assert sources(owner)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_modules_of_a_package_import_each_other_without_a_circle(package: str) -> None:
    modules = {module_name(path): path for path in sources(package)}
    graph = {
        name: {other for other in imported_modules(path) if other in modules and other != name}
        for name, path in modules.items()
    }
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    assert not graph, "these import each other in a circle, or what does"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_named_after_its_package_or_a_standard_module(package: str) -> None:
    """`python launch/submit.py` puts launch/ first on the path: launch/logging.py would shadow."""
    shadowing = {path.stem for path in sources(package)} & {package, *sys.stdlib_module_names}
    assert not shadowing - {"__init__", "__main__"}


@pytest.mark.parametrize("command", SLOW)
@pytest.mark.parametrize("argv", [["--help"], ["sede=1"]])
def test_help_and_wrong_settings_wait_for_no_large_library(command: str, argv: list[str]) -> None:
    script = f"""
import sys
from command_line import UsageError
from {command}.__main__ import main
try:
    main({argv!r})
except UsageError as error:
    assert "sede" in str(error)
print("LOADED", *sys.modules)
"""
    loaded = loaded_in(script)
    assert f"{command}.config" in loaded
    assert not loaded & SLOW[command]


def test_wrong_settings_of_a_submission_wait_for_no_large_library() -> None:
    script = """
import sys
from command_line import UsageError
from launch.submit import main
try:
    main(["--dry-run", "sede=1"])
except UsageError as error:
    assert "sede" in str(error)
print("LOADED", *sys.modules)
"""
    loaded = loaded_in(script)
    assert "launch.stages" in loaded
    assert not loaded & {"torch", "cv2", "train.trainer"}


def loaded_in(script: str) -> set[str]:
    """What a script prints after LOADED."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.rpartition("LOADED ")[2].split())


def test_workers_of_a_preparation_begin_to_load_before_the_run_itself(tmp_path: Path) -> None:
    script = f"""
import sys
from data_prep import __main__ as command
def get_ready(module):
    print("LOADED", *sys.modules)
    sys.exit()
command.get_ready = get_ready
command.main(["raw={tmp_path}", "out={tmp_path / "out"}"])
"""
    loaded = loaded_in(script)
    assert "data_prep.workers" in loaded
    assert not loaded & SLOW["data_prep"]
