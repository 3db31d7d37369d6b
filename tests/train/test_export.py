"""Models handed on: the same masks as the run's, as safetensors and as ONNX, and files that are
neither."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import tifffile
import torch
from PIL import Image
from torch import nn

from common.schema import json_sha256
from data_prep.dataset.manifest import Dataset
from data_prep.image_files.open_image import read_image
from model import ModelConfig, build_model
from tests.conftest import ROOT
from tests.forked_ranks import ForkedRanks
from tests.train.conftest import RADIUS_PX, TINY, prepare_here
from train import __main__ as train_main
from train import evaluate, export, predict, show
from train.checkpoints.load_checkpoint import load_all_tensors
from train.exchange import exported_model, onnx_model
from train.exchange.config import ExportConfig
from train.runs.export_run import export_run
from train.runs.thresholds import doubt_about_best

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def model_file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's best model as safetensors."""
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    export_run(ExportConfig(run=str(trained), out=str(path)))
    return path


def test_a_run_that_never_saves_within_an_epoch_is_handed_on(own_run: Path, tmp_path: Path) -> None:
    """JSON has no infinity."""
    config = own_run / "config.yaml"
    config.write_text(config.read_text().replace("save_every_s: auto", "save_every_s: .inf"))
    out = tmp_path / "model.safetensors"
    export_run(ExportConfig(run=str(own_run), out=str(out)))
    assert exported_model.read(out).config.save_every_s == float("inf")


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata, by the format's definition: a length, then JSON."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]


def best_step(run: Path) -> int:
    return int((run / "checkpoints" / "best").read_text().strip().removeprefix("step_"))


def outputs(out: Path) -> dict[str, bytes]:
    """Of each file its bytes, of TIFs their pixels: each has a name of its own inside."""
    return {
        path.name: tifffile.imread(path).tobytes() if path.suffix == ".tif" else path.read_bytes()
        for path in sorted(out.iterdir())
        if path.is_file() and not path.name.endswith("_settings.json")
    }


def test_predict_gives_the_same_files_for_a_run_and_its_exported_model(
    trained: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    """Of the checkpoint that is not the best."""
    name = "8" if best_step(trained) == 4 else "4"
    model = tmp_path / "deep" / "model.safetensors"
    outcome = cli(export.main, f"run={trained}", f"out={model}", f"checkpoint={name}")
    assert (outcome.code, outcome.err) == (0, "")
    assert str(model) in outcome.out
    for source, out, which in ((trained, "a", name), (model, "b", "best")):
        given = [f"run={source}", f"input={raw}", f"out={tmp_path / out}", f"checkpoint={which}"]
        assert cli(predict.main, *given).code == 0
    assert len(outputs(tmp_path / "a")) == 6 * 9
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")


def test_evaluate_gives_the_same_summary_for_a_run_and_its_exported_model(
    trained: Path, model_file: Path, raw: Path, prepared: Dataset, tmp_path: Path, cli: Cli
) -> None:
    def summary(*given: str) -> dict[str, Any]:
        out = tmp_path / "out"
        assert cli(evaluate.main, *given, f"out={out}", "figures=0").code == 0
        content = json.loads((out / "summary.json").read_text())
        which = ("run", "checkpoint", "checkpoint_sha256")
        return {key: content[key] for key in content if key not in which}

    fields = f"raw={raw}", f"data={prepared.folder}"
    assert summary(f"run={model_file}", *fields) == summary(f"run={trained}", *fields)


def test_evaluate_writes_beside_an_exported_model_and_names_it_once_in_a_line(
    trained: Path, model_file: Path, raw: Path, cli: Cli
) -> None:
    """Where a run has the name of its checkpoint, it has the step."""
    outcome = cli(evaluate.main, f"run={model_file}", f"raw={raw}", "cases=[1]", "figures=0")
    assert outcome.code == 0
    out, step = model_file.with_name("model_evaluation") / f"{raw.name}-1", best_step(trained)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["checkpoint"], summary["step"]) == ("model.safetensors", step)
    assert summary["warnings"] == [
        "trained on: Case_1; these figures do not show new patients",
        doubt_about_best(0.0, step),
        "not checked whether these pictures were trained on under other names: an exported model"
        " does not know where its data set is; give data=",
    ]
    assert f"\nmodel.safetensors, step {step}: threshold" in outcome.out
    page = (out / "report.html").read_text()
    assert "<h1>Evaluation of model.safetensors</h1>" in page
    assert f"\nstep {step}, epoch {step // 4} ·" in page
    assert f"<dt>Checkpoint</dt><dd>step {step}, epoch {step // 4}</dd>" in page
    assert not [line for line in page.splitlines() if line.count("model.safetensors") > 1]


def test_evaluate_of_an_exported_model_asks_where_the_fields_are(
    model_file: Path, cli: Cli
) -> None:
    outcome = cli(evaluate.main, f"run={model_file}")
    assert outcome.code == 2
    assert "give raw= or data=" in outcome.err


def test_the_file_says_all_that_is_needed_to_use_it(
    trained: Path, model_file: Path, prepared: Dataset, cli: Cli
) -> None:
    metadata = metadata_of(model_file)
    assert list(metadata) == ["eosin"]
    about = json.loads(metadata["eosin"])
    assert about["format"] == 7
    assert about["model"]["width"] == 4
    assert about["preprocessing"] == {
        **{"channels": "RGB", "dtype": "uint8", "divide_by": 255},
        "stains": None,
    }
    assert about["tile"] == {"size_px": 48, "overlap_px": 8, "batch": 1}
    assert about["classes"] == {"tumor": 255}
    assert about["mask_values"] == [255]
    assert (about["radius_px"], about["uint16_white"]) == (8, 65535)
    assert about["thresholds"] == [about["checkpoint"]["metrics"]["val/threshold"]]
    assert about["data"]["content_sha256"] == prepared.description.content_sha256
    assert about["data"]["cases"]["test"] == ["Case_4", "Case_5"]
    step = best_step(trained)
    assert (about["checkpoint"]["step"], about["checkpoint"]["epochs"]) == (step, step // 4)
    assert about["training"]["lr"] == 0.01
    assert about["versions"]["torch"] == version("torch")
    shown = cli(show.main, f"run={trained}", "checkpoint=best").out
    assert f"model sha256  {about['checkpoint']['model_sha256']}" in shown
    assert str(prepared.folder) not in metadata["eosin"]
    assert str(trained) not in metadata["eosin"]


def test_an_exported_model_is_exported_to_the_same_bytes(
    model_file: Path, tmp_path: Path, cli: Cli
) -> None:
    again = tmp_path / "again.safetensors"
    assert cli(export.main, f"run={model_file}", f"out={again}").code == 0
    assert again.read_bytes() == model_file.read_bytes()


def refusal(path: Path, cli: Cli, tmp_path: Path) -> Any:
    """What predict says of a file; it must write nothing."""
    outcome = cli(predict.main, f"run={path}", f"input={ROOT}/docs", f"out={tmp_path / 'out'}")
    assert outcome.code in (1, 2)
    assert outcome.err.count("\n") == 1
    assert f"run={path}" in outcome.err
    return outcome


@pytest.mark.parametrize("part", ["length", "header", "metadata", "first weight", "last weight"])
def test_a_file_with_one_changed_byte_is_refused(
    part: str, model_file: Path, tmp_path: Path, cli: Cli
) -> None:
    content = bytearray(model_file.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]
    place = {
        "length": 7,
        "header": 8,
        "metadata": content.index(b"uint16_white") + len(b'uint16_white\\": 6'),
        "first weight": start,
        "last weight": len(content) - 1,
    }[part]
    content[place] ^= 1
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content)
    outcome = refusal(path, cli, tmp_path)
    assert outcome.code == 1
    assert "damaged" in outcome.err


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_is_refused(
    share: float, model_file: Path, tmp_path: Path, cli: Cli
) -> None:
    content = model_file.read_bytes()
    path = tmp_path / "short.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    assert "damaged" in refusal(path, cli, tmp_path).err


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A file with other metadata, as a program that means it would write it."""
    about = json.loads(metadata_of(source)["eosin"])
    change(about)
    about.pop("sha256")
    about["sha256"] = json_sha256(about)
    tensors = safetensors.torch.load_file(source)
    safetensors.torch.save_file(tensors, target, {"eosin": json.dumps(about)})
    return target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.update(format=1), "is of format 1; this version reads 7"),
        (lambda about: about.pop("tile"), "tile: is missing"),
        (lambda about: about["data"].pop("cases"), "data.cases: is missing"),
        (lambda about: about["data"].update(case_regex="("), "cannot be used (case_regex=(: "),
        (
            lambda about: about["data"].update(stain_norm="macenko", stain_reference="1e400"),
            "cannot be used (stain_reference: expected 'hematoxylin",
        ),
        (lambda about: about["data"].pop("stain_norm"), "data.stain_norm: is missing"),
        (lambda about: about["model"].update(width=8), "weights do not fit"),
        (lambda about: about["model"].update(width="wide"), "model.width: expected a whole number"),
        (lambda about: about["model"].update(attention=True), "attention"),
        (lambda about: about["model"].update(depth=0), "model.depth=0"),
        (lambda about: about.update(training=None), "cannot be used"),
        (lambda about: about.pop("origins"), "origins: is missing"),
        (lambda about: about.pop("encoder"), "encoder: is missing"),
        (lambda about: about.update(encoder={"source": "a"}), "encoder: is missing"),
        (lambda about: about["data"]["cases"].pop("val"), "expected train, val, test"),
        (lambda about: about["data"]["cases"]["val"].append("Case_1"), "'Case_1' is listed twice"),
        (lambda about: about["training"].update(init="first"), "0 origins, of a run with init="),
        (lambda about: about.update(origins=[{"source": "first"}]), "checkpoint: is missing"),
    ],
)
def test_metadata_that_cannot_be_used_is_named(
    change: Callable[[dict[str, Any]], None],
    words: str,
    model_file: Path,
    tmp_path: Path,
    cli: Cli,
) -> None:
    path = rewritten(model_file, tmp_path / "other.safetensors", change)
    assert words in refusal(path, cli, tmp_path).err


def test_a_rewritten_file_without_a_change_is_taken(model_file: Path, tmp_path: Path) -> None:
    path = rewritten(model_file, tmp_path / "same.safetensors", lambda about: None)
    assert exported_model.read(path) == exported_model.read(model_file)


SECRET, HOSTILE = "t0p-secret", "${oc.env:SECRET}"


def test_no_expression_of_a_stranger_is_resolved(
    own_run: Path, model_file: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's config.yaml and an exported model are texts: evaluated, exported and exported on."""
    monkeypatch.setenv("SECRET", SECRET)
    config = own_run / "config.yaml"
    assert "preset: ''" in config.read_text()
    config.write_text(config.read_text().replace("preset: ''", f"preset: '{HOSTILE}'"))

    def hostile(about: dict[str, Any]) -> None:
        about["training"]["preset"] = HOSTILE

    of_stranger = rewritten(model_file, tmp_path / "stranger.safetensors", hostile)
    for number, source in enumerate([own_run, of_stranger]):
        model = tmp_path / f"out_{number}.safetensors"
        assert cli(export.main, f"run={source}", f"out={model}").code == 0
        assert json.loads(metadata_of(model)["eosin"])["training"]["preset"] == HOSTILE
    given = [f"run={own_run}", f"out={tmp_path / 'e'}", "amp=off", "figures=0"]
    assert cli(evaluate.main, *given).code == 0
    assert (tmp_path / "e/report.html").is_file()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_a_file_of_another_kind_is_refused(tmp_path: Path, cli: Cli) -> None:
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, foreign, {"format": "pt"})
    assert "not written by train.export" in refusal(foreign, cli, tmp_path).err
    pickled = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2)}, pickled)
    assert "neither a run nor a .safetensors" in refusal(pickled, cli, tmp_path).err
    assert refusal(tmp_path / "nowhere.safetensors", cli, tmp_path).code == 2


def test_a_pickle_under_our_name_runs_nothing(tmp_path: Path, cli: Cli) -> None:
    """What torch.load would execute."""
    trace = tmp_path / "executed"

    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return trace.touch, ()

    path = tmp_path / "model.safetensors"
    torch.save(Bad(), path)
    assert "damaged" in refusal(path, cli, tmp_path).err
    assert not trace.exists()
    torch.load(path.rename(tmp_path / "model.pt"), weights_only=False)
    assert trace.exists(), "the file is harmless, the test shows nothing"


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        (predict.main, ["checkpoint=latest", "input=x", "out=y"], "holds one only"),
        (show.main, [], "not a run with checkpoints"),
        (export.main, ["out=model.pt"], "must end in .safetensors or .onnx"),
        (export.main, ["out=model.safetensors", "check=a.png"], "only for out=*.onnx"),
    ],
)
def test_what_an_exported_model_is_not_for_is_said(
    command: Callable[[list[str]], int],
    given: list[str],
    words: str,
    model_file: Path,
    raw: Path,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [f"input={raw}" if setting == "input=x" else setting for setting in given]
    outcome = cli(command, f"run={model_file}", *given)
    assert outcome.code == 2
    assert words in outcome.err


# --- ONNX: one export takes seconds, so it is made once ---


@pytest.fixture(scope="module")
def two_class_run(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net with batch normalisation and a tile larger than a field, trained on fields of which
    two in four discs are green and annotated as mitoses."""
    folder = tmp_path_factory.mktemp("two_classes")
    fields, run = folder / "raw", folder / "run"
    shutil.copytree(raw, fields)
    for path in fields.glob("*.json"):
        points, image_HWC = (
            json.loads(path.read_text())["tumor"],
            cv2.imread(path.with_suffix(".png")),
        )
        height, width = image_HWC.shape[:2]
        for point in points[2:]:
            center = int(point["x"] * width), int(point["y"] * height)
            cv2.circle(image_HWC, center, RADIUS_PX, (60, 160, 60), cv2.FILLED)
        cv2.imwrite(path.with_suffix(".png"), image_HWC)
        path.write_text(json.dumps({"tumor": points[:2], "mitosis": points[2:]}))
    classes = ["classes=[tumor,mitosis]", "labels=per_class"]
    data = prepare_here(fields, folder / "prepared", *classes)
    settings = [*TINY, "epochs=8", "model.depth=3", "tile.size_px=128", "loss.dice_weight=1"]
    assert train_main.main([f"data={data.folder}", f"run={run}", *settings]) == 0
    return run


@pytest.fixture(scope="module")
def field(two_class_run: Path) -> Path:
    """One of its test fields."""
    return two_class_run.with_name("raw") / "Case_4-01.png"


@pytest.fixture(scope="module")
def onnx_file(two_class_run: Path, field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_run(ExportConfig(run=str(two_class_run), out=str(path), check=str(field)))
    return path


def torch_model(run: Path) -> nn.Module:
    """The run's best model, through nothing that exports."""
    best = run / "checkpoints" / (run / "checkpoints" / "best").read_text().strip()
    model = build_model(ModelConfig(width=4, depth=3), num_classes=2)
    model.load_state_dict(
        {
            name.removeprefix("model."): tensor
            for name, tensor in load_all_tensors(best).items()
            if name.startswith("model.")
        }
    )
    return model.eval()


def largest_difference(onnx_file: Path, model: nn.Module, image_BHWC: np.ndarray) -> float:
    image_BCHW = as_input(image_BHWC)
    probability_BCHW = through_onnx(onnx_file, image_BHWC)
    with torch.no_grad():
        expected_BCHW = torch.sigmoid(model(torch.from_numpy(image_BCHW))).numpy()
    assert probability_BCHW.dtype == np.float32
    assert probability_BCHW.shape == expected_BCHW.shape
    assert expected_BCHW.shape[2:] == image_BHWC.shape[1:3]
    return float(np.abs(probability_BCHW - expected_BCHW).max())


def as_input(image_BHWC: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image_BHWC.transpose(0, 3, 1, 2), np.float32) / 255


def through_onnx(onnx_file: Path, image_BHWC: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(onnx_file)
    (probability_BCHW,) = session.run(None, {"image": as_input(image_BHWC)})
    return probability_BCHW


def test_onnx_agrees_with_the_model_on_drawn_fields_of_any_size_and_batch(
    onnx_file: Path, two_class_run: Path, raw: Path
) -> None:
    model = torch_model(two_class_run)
    first, second = (read_image(raw / f"Case_{name}.png") for name in ("4-01", "5-01"))
    for image_BHWC in (
        first[None],
        np.stack((first, second)),
        first[None, :48, :64],
        first[None, 3:60, 1:92],
        first[None, :7, :5],
        np.stack((first, second, first))[:, :33, :1],
        np.tile(first, (3, 2, 1))[None],
    ):
        assert largest_difference(onnx_file, model, image_BHWC) < 1e-4


def test_onnx_has_a_plane_a_class_as_predict_has(
    two_class_run: Path, onnx_file: Path, field: Path, tmp_path: Path, cli: Cli
) -> None:
    (metadata,) = onnx.load(onnx_file).metadata_props
    about = json.loads(metadata.value)
    assert about["classes"] == {"tumor": 1, "mitosis": 2}
    assert about["mask_values"] == [1, 2]
    image_BHWC = read_image(field)[None]
    (probability_CHW,) = through_onnx(onnx_file, image_BHWC)
    out, thresholds = tmp_path / "out", np.array(about["thresholds"], np.float32)
    given = [f"run={two_class_run}", f"input={field}", f"out={out}", "amp=off", "min_tissue=0"]
    assert cli(predict.main, *given).code == 0
    byte_CHW = tifffile.imread(out / "Case_4-01_probability.tif")
    assert np.abs(byte_CHW - 255 * probability_CHW).max() < 0.51
    kept_CHW = np.where(probability_CHW > thresholds[:, None, None], probability_CHW, 0)
    expected_HW = np.where(kept_CHW.any(axis=0), 1 + kept_CHW.argmax(axis=0), 0)
    assert set(np.unique(expected_HW)) == {0, 1, 2}
    assert np.array_equal(tifffile.imread(out / "Case_4-01_mask.tif"), expected_HW)


@pytest.mark.parametrize(
    ("command", "source", "at", "words"),
    [
        ("train.predict", "input={}", -1, "sha256 of its weights differs"),
        ("train.evaluate", "raw={}", 40, "its metadata cannot be used"),
    ],
)
def test_several_ranks_say_once_that_a_file_is_damaged(
    command: str, source: str, at: int, words: str, model_file: Path, raw: Path, tmp_path: Path
) -> None:
    content = bytearray(model_file.read_bytes())
    content[at] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    given = [f"run={tmp_path / 'model.safetensors'}", f"out={tmp_path / 'out'}"]
    ranks = ForkedRanks(command, [*given, source.format(raw)], 2, tmp_path / "log")
    assert any(ranks.end(patience_s=10))
    assert ranks.output.count(words) == 1


def test_onnx_agrees_with_the_model_on_real_fields(
    onnx_file: Path, two_class_run: Path, real_data: Path
) -> None:
    model = torch_model(two_class_run)
    fields = [read_image(path) for path in sorted((real_data / "images").iterdir())[::5]]
    for image_HWC, (height, width) in zip(
        fields, ((1024, 1360), (512, 512), (301, 777), (97, 1000)), strict=True
    ):
        assert largest_difference(onnx_file, model, image_HWC[None, :height, :width]) < 1e-4


def test_onnx_says_what_safetensors_says_and_no_path_of_this_machine(
    onnx_file: Path, two_class_run: Path, tmp_path: Path, cli: Cli
) -> None:
    proto = onnx.load(onnx_file)
    onnx.checker.check_model(proto)
    model = tmp_path / "model.safetensors"
    assert cli(export.main, f"run={two_class_run}", f"out={model}").code == 0
    assert {entry.key: entry.value for entry in proto.metadata_props} == metadata_of(model)
    assert os.fsencode(ROOT) not in onnx_file.read_bytes()
    assert b"stack_trace" not in onnx_file.read_bytes()
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    ]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 2, "height", "width"]]


SNIPPET = re.search(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.S)


def test_the_snippet_of_the_docs_gives_predicts_mask_without_this_project(
    onnx_file: Path, two_class_run: Path, field: Path, tmp_path: Path, cli: Cli
) -> None:
    """In a process that sees the installed packages, but not ours (-S: not installed in place)."""
    assert SNIPPET is not None
    (tmp_path / "model.onnx").write_bytes(onnx_file.read_bytes())
    image = tmp_path / "field.tif"
    Image.open(field).save(image)

    def python(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": sysconfig.get_path("purelib")},
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert "No module named 'train'" in python("import train").stderr
    outcome = python(SNIPPET[1])
    assert outcome.returncode == 0, outcome.stderr

    given = [f"run={two_class_run}", f"input={image}", f"out={tmp_path / 'out'}", "amp=off"]
    assert cli(predict.main, *given).code == 0
    mask_HW = np.asarray(Image.open(tmp_path / "field_mask.png"))
    expected_HW = np.asarray(Image.open(tmp_path / "out" / "field_mask.png"))
    assert {0, 1, 2} == set(np.unique(expected_HW))
    assert np.array_equal(mask_HW, expected_HW)


def test_only_an_export_of_before_is_replaced(trained: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"mine")
    outcome = cli(export.main, f"run={trained}", f"out={out}")
    assert (outcome.code, outcome.out) == (1, "")
    assert "in the way, not written by this command" in outcome.err
    assert ": model.safetensors; move away what is yours" in outcome.err
    assert out.read_bytes() == b"mine"
    out.unlink()
    for step in ("4", "8"):
        assert cli(export.main, f"run={trained}", f"out={out}", f"checkpoint={step}").code == 0
    assert cli(export.main, f"run={out}", f"out={out}").code == 0, "of itself"


def test_onnx_that_differs_is_not_written(
    onnx_file: Path, two_class_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another checkpoint's file comes out of the conversion."""
    monkeypatch.setattr(onnx_model, "convert", lambda model, about: onnx_file.read_bytes())
    other = f"checkpoint={28 if best_step(two_class_run) == 32 else 32}"
    outcome = cli(export.main, f"run={two_class_run}", other, f"out={tmp_path / 'model.onnx'}")
    assert outcome.code == 1
    assert re.search(r"differs from the model by 0\.\d+ in .* random image\(s\) of", outcome.err)
    assert not list(tmp_path.iterdir())


def test_onnx_is_checked_on_the_given_image_in_tiles(
    trained: Path, raw: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 x 96 px in tiles of 48 that overlap by 8: two rows of three."""
    checked: dict[str, torch.Tensor] = {}

    def record(content: bytes, model: nn.Module, images: Any) -> float:
        checked.update(images)
        return 0.0

    monkeypatch.setattr(onnx_model, "convert", lambda model, about: b"")
    monkeypatch.setattr(onnx_model, "check", record)
    field, out = raw / "Case_4-01.png", tmp_path / "m.onnx"
    assert cli(export.main, f"run={trained}", f"out={out}", f"check={field}").code == 0
    image_HWC = np.asarray(Image.open(field))
    tile_BCHW = checked[f"{field} at x=24, y=16"]
    expected_CHW = image_HWC[16:64, 24:72].transpose(2, 0, 1).astype(np.float32) / 255
    assert np.array_equal(tile_BCHW[0], expected_CHW)
    assert len(checked) == len(onnx_model.RANDOM_SIZES_BHW) + 6


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_an_image_to_check_on_that_is_none_is_refused(
    content: bytes | None, trained: Path, tmp_path: Path, cli: Cli
) -> None:
    field = tmp_path / "field.png"
    if content:
        field.write_bytes(content)
    out = tmp_path / "m.onnx"
    outcome = cli(export.main, f"run={trained}", f"out={out}", f"check={field}")
    assert outcome.code == 2
    assert f"check={field}" in outcome.err


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_how_to_install_it(
    package: str, trained: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    outcome = cli(export.main, f"run={trained}", f"out={tmp_path / 'm.onnx'}")
    assert outcome.code == 1
    assert package in outcome.err
    assert "pip install --editable '.[onnx]'" in outcome.err
