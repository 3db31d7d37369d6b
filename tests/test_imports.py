"""Imports point one way: model and data_prep <- train; launch reaches the rest from outside."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "data_prep", "model", "train", "launch")
OURS = {*PACKAGES, "tests"}

# Who may import whom; launch calls the rest by command line, or by a late import inside a job
ALLOWED: dict[str, set[str]] = {
    "common": set(),
    "data_prep": {"common"},
    "model": {"common"},
    "train": {"common", "data_prep", "model"},
    "launch": {"common", "data_prep", "model", "train"},
}

MOST_FILES = 14

# Modules at the top of a package that its folders import too
FLOOR = {"data_prep.config", "data_prep.raw", "train.config"}

# Commands, each with the module that holds its settings
COMMANDS = {
    "data_prep.__main__": "data_prep.config",
    "data_prep.fetch": "data_prep.fetch",
    "data_prep.preview": "data_prep.tools.config",
    "data_prep.synthetic": "data_prep.tools.config",
    "model.fetch": "model.fetch",
    "train.__main__": "train.config",
    "train.compare": "train.comparison.config",
    "train.evaluate": "train.evaluation.config",
    "train.export": "train.exchange.config",
    "train.predict": "train.prediction.config",
    "train.show": "train.runs.config",
}

# Settings that name what is not there, which is said without loading anything
MISSING = {
    "train.__main__": [
        ["data=nowhere"],
        ["init=nowhere"],
        ["model.name=smp", "model.weights=nowhere"],
    ],
    "train.compare": [["runs=nowhere"], ["runs=nowhere/trial-*"]],
    "train.evaluate": [["run=nowhere"], ["raw=nowhere"]],
    "train.export": [["out=a.onnx", "run=nowhere"]],
    "train.predict": [["out=a", "input=nowhere"]],
    "train.show": [["run=nowhere"]],
}

# Libraries that take long to load, of which the settings of a command need nothing
LARGE = {
    *("albumentations", "cv2", "imagecodecs", "matplotlib", "numpy", "scipy", "tifffile", "torch"),
    *("huggingface_hub", "segmentation_models_pytorch", "timm", "zarr"),
}


def sources(owner: str) -> list[Path]:
    return sorted((ROOT / owner).rglob("*.py"))


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


def test_only_common_hands_values_to_omegaconf() -> None:
    """It keeps texts from being resolved; others take no more than the sign of a missing value."""
    modules = {
        module
        for owner in PACKAGES
        if owner != "common"
        for path in sources(owner)
        for module in imported_modules(path)
    }
    assert {name for name in modules if name.startswith("omegaconf.")} == {"omegaconf.MISSING"}


@pytest.mark.parametrize("owner", PACKAGES)
def test_the_packages_that_the_rule_is_about_are_there(owner: str) -> None:
    assert sources(owner)


def test_a_room_imports_only_rooms_above_it_in_the_table_of_contributing() -> None:
    """A folder is a room: what it needs stands above it, and nothing of that needs the room."""
    table = re.findall(
        r"^\| `([a-z_/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    above = {room.replace("/", "."): number for number, room in enumerate(table)}
    files = (path for owner in PACKAGES for path in sources(owner))
    modules = {module_name(path): path for path in files if path.name != "__init__.py"}
    assert {room_of(name) for name in modules} - FLOOR == above.keys() - {"slurm", "tests"}
    wrong = [
        f"{name} imports {other}"
        for name, path in modules.items()
        if name not in FLOOR
        for other in imported_modules(path)
        if other in modules
        and room_of(other) != room_of(name)
        and above.get(room_of(other), -1) >= above.get(room_of(name), 0)
    ]
    assert not wrong


def room_of(module: str) -> str:
    """The folder of a module; a module of the floor is a room of its own."""
    return module if module in FLOOR else module.rpartition(".")[0]


def circular(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is left of a graph when all that needs nothing is taken away, again and again."""
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_holds_about_a_dozen_files(package: str) -> None:
    folders = {path.parent for path in sources(package)}
    files = {folder: len([*folder.glob("*.py")]) - 1 for folder in folders}  # without __init__.py
    assert not {str(folder.relative_to(ROOT)): n for folder, n in files.items() if n > MOST_FILES}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_modules_of_a_package_import_each_other_without_a_circle(package: str) -> None:
    modules = {module_name(path): path for path in sources(package)}
    graph = {
        name: {other for other in imported_modules(path) if other in modules and other != name}
        for name, path in modules.items()
    }
    assert not circular(graph), "these import each other in a circle, or what does"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_named_after_its_package_or_a_standard_module(package: str) -> None:
    """`python launch/submit.py` puts launch/ first on the path: launch/logging.py would shadow."""
    shadowing = {path.stem for path in sources(package)} & {package, *sys.stdlib_module_names}
    assert not shadowing - {"__init__", "__main__"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_settings_wait_for_no_large_library(command: str) -> None:
    script = f"""
import sys
from common.command_line import UsageError
from {command} import main
assert main(["--help"]) == 0
for wrong in {[["sede=1"], *MISSING.get(command, [])]}:
    try:
        main(wrong)
    except UsageError as error:
        assert wrong[-1] in str(error)
    else:
        sys.exit(f"{{wrong}} was taken")
print("LOADED", *sys.modules)
"""
    loaded = loaded_in(script)
    assert COMMANDS[command] in loaded
    assert not loaded & LARGE


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("submit", ["--help"]),
        ("submit", ["--dry-run", "sede=1"]),
        ("submit", ["--dry-run", "epochs=many"]),
        ("submit", ["--dry-run", "--nodes", "0"]),
        ("jobs", ["--help"]),
        ("doctor", ["--help"]),
    ],
)
def test_launching_answers_at_once(command: str, argv: list[str]) -> None:
    script = f"""
import sys
from common.command_line import UsageError
from launch.{command} import main
try:
    main({argv!r})
except (UsageError, SystemExit):
    print("LOADED", *sys.modules)
"""
    loaded = loaded_in(script)
    assert f"launch.{command}" in loaded
    assert not loaded & {*LARGE, "submitit"}


def loaded_in(script: str) -> set[str]:
    """What a script prints after LOADED."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.rpartition("LOADED ")[2].split())


def test_workers_of_a_preparation_begin_to_load_before_the_run_itself(tmp_path: Path) -> None:
    (tmp_path / "Case_1-01.tif").write_bytes(b"")
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
    assert "common.workers" in loaded
    assert not loaded & {*LARGE, "data_prep.prepare"}
