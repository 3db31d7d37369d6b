"""Several runs as one model: predicted, measured on raw fields, exported, and what is refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

from common.command_line import UserError
from common.schema import json_sha256
from data_prep.dataset.manifest import Dataset
from data_prep.image_files.open_image import read_image
from model import ensemble
from model.precision import Precision
from tests.train.conftest import TINY
from tests.train.test_export import metadata_of, outputs
from train import __main__ as train_main
from train import evaluate, export, predict, show
from train.config import TileConfig
from train.prediction.tiles import predict_probability
from train.ranks.distributed import Ranks
from train.runs.ensemble import named_run, read_any
from train.runs.run_folder import read_run
from train.runs.thresholds import (
    ClassThresholds,
    OutOfFold,
    Thresholds,
    damaged,
    median_of,
    read_out_of_fold,
)

Cli = Callable[..., Any]
CPU = torch.device("cpu")
PLAIN = Precision(CPU, "off", "contiguous")


@pytest.fixture(scope="module")
def deeper(prepared: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another architecture, seed and tile, on the data of `trained`."""
    run = tmp_path_factory.mktemp("deeper") / "deeper"
    other = ["epochs=1", "model.depth=2", "model.norm=none", "seed=1", "tile.size_px=128"]
    assert train_main.main([f"data={prepared.folder}", f"run={run}", *TINY, *other]) == 0
    return run


@pytest.fixture
def own_cv(cv: Path, tmp_path: Path) -> Path:
    """The folds, to do with as one likes."""
    return Path(shutil.copytree(cv, tmp_path / "cv"))


ONE_TILE = TileConfig(128, 0)  # larger than a field; without overlap all weights are 1


def probability(run: Path, image: Path, tta: bool = False) -> np.ndarray:
    """What a run predicts of an image."""
    model = read_run(run).load_model("best", Ranks(0, 1, CPU)).model.eval()
    return predict_probability(model, read_image(image), ONE_TILE, PLAIN, tta)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("together", [True, False])
def test_an_ensemble_predicts_the_mean_of_its_members_probabilities(
    tta: bool,
    together: bool,
    trained: Path,
    deeper: Path,
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the same order however they are named, at once and one after the other."""
    image = raw / "Case_4-01.png"
    expected = (probability(deeper, image, tta) + probability(trained, image, tta)) / np.float32(2)
    monkeypatch.setattr(ensemble, "fits", lambda model, device: together)
    for runs in ([trained, deeper], [deeper, trained]):
        run = named_run("", [str(path) for path in runs])
        assert run.config.tile.size_px == 128
        loaded = run.load_model("best", Ranks(0, 1, CPU))
        assert loaded.state["notes"] == [
            "members have other tile.* settings; the largest is used: size_px=128 overlap_px=8"
        ]
        model = loaded.model.eval()
        found = predict_probability(model, read_image(image), ONE_TILE, PLAIN, tta)
        assert np.array_equal(found, expected)
    assert not np.array_equal(expected, probability(trained, image, tta))


def settings_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "Case_4-01_settings.json").read_text())


def test_an_ensemble_of_one_run_is_the_run(
    trained: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    image = raw / "Case_4-01.png"
    for given, out in ((f"run={trained}", "a"), (f"runs=[{trained}]", "b")):
        outcome = cli(predict.main, given, f"input={image}", f"out={tmp_path / out}")
        assert outcome.code == 0, outcome.err
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    assert settings_of(tmp_path / "a") == settings_of(tmp_path / "b")


def test_a_prediction_names_its_members_and_goes_on_only_with_these(
    own_cv: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    image, out = raw / "Case_4-01.png", tmp_path / "out"
    given = [f"runs=[{own_cv}/fold-*]", f"input={image}", f"out={out}"]
    assert cli(predict.main, *given).code == 0
    settings = settings_of(out)
    assert [member["run"] for member in settings["members"]] == ["fold-0", "fold-1", "fold-2"]
    assert len({member["model_sha256"] for member in settings["members"]}) == 3
    assert "(1 done before)" in cli(predict.main, *given).out
    shutil.rmtree(own_cv / "fold-1")
    outcome = cli(predict.main, *given)
    assert "done before" not in outcome.out
    assert settings_of(out)["model_sha256"] != settings["model_sha256"]


def test_thresholds_of_folds_are_those_chosen_out_of_fold_for_these_checkpoints(
    own_cv: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    """Of others, 0.5, with what chooses them."""
    out = tmp_path / "out"
    given = [f"run={own_cv}", f"input={raw / 'Case_4-01.png'}", f"out={out}", "min_tissue=0"]
    before = cli(predict.main, *given)
    note = f"python -m train.evaluate run={own_cv} chooses them out of fold\n"
    assert f"the thresholds of {own_cv} are not chosen yet, so 0.5 is used; {note}" in before.out
    assert "threshold of pixels 0.5, of nuclei 0.5 (both default, not chosen" in before.out
    assert cli(evaluate.main, f"run={own_cv}", "figures=0").code == 0
    kept = json.loads((own_cv / "ensemble.json").read_text())
    kept |= {"threshold": 0.31, "nuclei_threshold": 0.27}
    (own_cv / "ensemble.json").write_text(json.dumps(kept))
    after = cli(predict.main, *given)
    words = "threshold of pixels 0.31, of nuclei 0.27 (both chosen out of fold)"
    assert after.code == 0
    assert words in after.out
    settings = settings_of(out)
    assert (settings["threshold"], settings["nuclei_threshold"]) == (0.31, 0.27)
    model = tmp_path / "cv.safetensors"
    assert cli(export.main, f"run={own_cv}", f"out={model}").code == 0
    again = [f"run={model}", *given[1:2], f"out={tmp_path / 'exported'}", "min_tissue=0"]
    assert words in cli(predict.main, *again).out
    assert outputs(tmp_path / "exported") == outputs(out)
    kept["threshold"] = {"lumen": 0.31}
    (own_cv / "ensemble.json").write_text(json.dumps(kept))
    refused = cli(predict.main, *given)
    assert refused.code == 1
    assert (
        "damaged: thresholds of ['lumen'], but the classes are ['tumor']; move it away"
        in refused.err
    )
    kept["threshold"] = 0.31
    (own_cv / "ensemble.json").write_text(json.dumps(kept))
    measured = cli(evaluate.main, f"run={own_cv}", f"raw={raw}", "cases=[1]", "figures=0")
    assert words in measured.out
    assert "warning: trained on: Case_1; these figures do not show new patients" in measured.out
    assert (own_cv / f"evaluation/{raw.name}-1/report.html").is_file()

    shutil.rmtree(own_cv / "fold-2")
    shutil.copytree(own_cv / "fold-1", own_cv / "fold-2")
    config = own_cv / "fold-2/config.yaml"
    config.write_text(config.read_text().replace("fold: 1", "fold: 2"))
    stale = cli(predict.main, *given)
    assert f"the thresholds of {own_cv} were chosen for other checkpoints, so 0.5" in stale.out


def state(pixels: float | None, nuclei: float | None) -> dict[str, Any]:
    return {"metrics": {"val/threshold": pixels, "val/nuclei_threshold": nuclei}}


def both(pixels: float, of_pixels: str, nuclei: float, of_nuclei: str) -> Thresholds:
    return Thresholds(ClassThresholds((pixels,), of_pixels), ClassThresholds((nuclei,), of_nuclei))


def test_thresholds_of_other_ensembles_are_the_median_of_the_members() -> None:
    states = [state(0.3, None), state(0.7, 0.4), state(0.4, None)]
    assert median_of(states, ["tumor"]) == both(0.4, "members", 0.4, "members")
    assert median_of([{"metrics": {}}] * 2, ["tumor"]) == both(0.5, "default", 0.5, "default")
    empty = median_of([state(None, None)], ["tumor"])
    assert empty == both(0.5, "empty_val", 0.5, "empty_val")


def test_each_class_has_the_median_of_its_own_thresholds() -> None:
    """A member that knows none of a class gives that of all classes together."""
    states = [state(each, each) for each in (0.3, 0.5, 0.6)]
    for one, value in zip(states, (0.1, 0.4), strict=False):
        one["metrics"]["val/threshold/lumen"] = value
    found = median_of(states, ["tumor", "lumen"])
    assert (found.pixels.values, found.nuclei.values) == ((0.5, 0.4), (0.5, 0.5))
    assert found.in_words(["tumor", "lumen"]) == (
        "threshold of pixels tumor 0.5, lumen 0.4, of nuclei tumor 0.5, lumen 0.5 (both median of"
        " the members', each chosen on val)"
    )


def test_nothing_annotated_gives_the_default_threshold() -> None:
    kept = OutOfFold({}, None, 0.2, tta=False)
    assert kept.thresholds(["tumor"]) == both(0.5, "empty_folds", 0.2, "out of fold")


def test_thresholds_that_were_chosen_with_turns_say_so() -> None:
    words = OutOfFold({}, 0.4, 0.2, tta=True).thresholds(["tumor"]).in_words(["tumor"])
    assert words.endswith("0.4, of nuclei 0.2 (both chosen out of fold with tta=true)")


# --- in one file ---


@pytest.fixture(scope="module")
def file(trained: Path, deeper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of other architectures in one file."""
    path = tmp_path_factory.mktemp("exported") / "both.safetensors"
    assert export.main([f"runs=[{trained},{deeper}]", f"out={path}"]) == 0
    return path


def test_a_file_of_several_models_gives_them_all_back(
    file: Path, trained: Path, deeper: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    for source, out in ((f"run={file}", "a"), (f"runs=[{trained},{deeper}]", "b")):
        given = [source, f"input={raw / 'Case_4-01.png'}", f"out={tmp_path / out}", "tta=true"]
        outcome = cli(predict.main, *given)
        assert outcome.code == 0, outcome.err
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    one, other = settings_of(tmp_path / "a"), settings_of(tmp_path / "b")
    assert one["model_sha256"] == other["model_sha256"]
    assert (one["threshold"], one["tile_px"]) == (other["threshold"], 128)
    again = tmp_path / "again.safetensors"
    assert cli(export.main, f"run={file}", f"out={again}").code == 0
    assert again.read_bytes() == file.read_bytes()


def test_a_file_of_several_models_says_what_one_says_and_each_of_its_own(
    file: Path, trained: Path, deeper: Path
) -> None:
    about = json.loads(metadata_of(file)["eosin"])
    assert about["tile"] == {"size_px": 128, "overlap_px": 8, "batch": 1}
    assert about["classes"] == {"tumor": 255}
    assert about["preprocessing"] == {
        **{"channels": "RGB", "dtype": "uint8", "divide_by": 255},
        "stains": None,
    }
    assert [member["model"]["depth"] for member in about["members"]] == [2, 1]  # deeper, trained
    members = [read_run(run).load_model("best", Ranks(0, 1, CPU)) for run in (deeper, trained)]
    for found, loaded in zip(about["members"], members, strict=True):
        assert found["checkpoint"]["metrics"] == loaded.state["metrics"]
    tensors = safetensors.torch.load_file(file)
    for number, loaded in enumerate(members):
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(tensors.pop(f"{number}.{name}"), tensor)
    assert not tensors


def test_onnx_holds_the_mean_of_all_members(
    trained: Path, deeper: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    out, image = tmp_path / "both.onnx", raw / "Case_4-01.png"
    outcome = cli(export.main, f"runs=[{trained},{deeper}]", f"out={out}", f"check={image}")
    assert outcome.code == 0, outcome.err
    assert f"exported deeper, trained into {out}\n" in outcome.out
    expected = (probability(deeper, image) + probability(trained, image)) / 2
    image_BCHW = read_image(image).transpose(2, 0, 1)[None].astype(np.float32) / 255
    (found_BCHW,) = onnxruntime.InferenceSession(out).run(None, {"image": image_BCHW})
    assert np.abs(found_BCHW[0] - expected).max() < 1e-4


def rewritten(source: Path, target: Path, change: Callable[..., None]) -> Path:
    """A file with other metadata and tensors, as a program that means it would write it."""
    about, tensors = json.loads(metadata_of(source)["eosin"]), safetensors.torch.load_file(source)
    change(about, tensors)
    for part in (*(each for each in about["members"] if isinstance(each, dict)), about):
        part.pop("sha256", None)
        part["sha256"] = json_sha256(part)
    safetensors.torch.save_file(tensors, target, {"eosin": json.dumps(about)})
    return target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about, tensors: about["members"].pop(), "expected 2 or more, found 1"),
        (lambda about, tensors: about.update(members=[]), "expected 2 or more, found 0"),
        (lambda about, tensors: about.update(members=[1, 2]), "members.0: expected"),
        (
            lambda about, tensors: about["members"].append(about["members"][0]),
            "it should hold the weights of 3 models",
        ),
        (
            lambda about, tensors: [tensors.pop(n) for n in [*tensors] if n[0] == "1"],
            "it should hold the weights of 2 models",
        ),
        (
            lambda about, tensors: tensors.update({"2.a": torch.ones(1)}),
            "it should hold the weights of 2 models",
        ),
        (lambda about, tensors: tensors.popitem(), "sha256 of its weights differs"),
        (lambda about, tensors: about["members"].reverse(), "sha256 of its weights differs"),
        (lambda about, tensors: about.update(thresholds=[1.5]), "a threshold of 1.5"),
        (lambda about, tensors: about.update(chosen_on="\x1b[2J"), "is none"),
        (lambda about, tensors: about.pop("nuclei_thresholds"), "nuclei_thresholds: is missing"),
        (lambda about, tensors: about.update(thresholds=[0.5, 0.5]), "2 thresholds for 1 class"),
        (lambda about, tensors: about["members"][1].update(format=1), "is of format 1"),
        (lambda about, tensors: about["members"][1].update(radius_px=9), "radius_px: 8 -> 9"),
        (
            lambda about, tensors: about["members"][1].update(classes={"a": 1, "b": 2}),
            "labels: ",
        ),
        (lambda about, tensors: about["members"][1]["model"].update(width=8), "do not fit"),
    ],
)
def test_a_file_of_several_models_that_was_changed_is_refused_in_a_line(
    change: Callable[..., None], words: str, file: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    path = rewritten(file, tmp_path / "changed.safetensors", change)
    outcome = cli(predict.main, f"run={path}", f"input={raw}", f"out={tmp_path / 'out'}")
    assert outcome.code in (1, 2)
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.glob("out/*.tif"))


def test_a_rewritten_file_without_a_change_is_taken(file: Path, tmp_path: Path) -> None:
    path = rewritten(file, tmp_path / "same.safetensors", lambda about, tensors: None)
    for one, other in zip(read_any(path).members, read_any(file).members, strict=True):
        assert (one.config, one.data) == (other.config, other.data)
    assert read_any(path).load_model("best", Ranks(0, 1, CPU))


# --- what is refused ---


def test_a_member_that_labels_otherwise_is_refused(
    trained: Path, own_run: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    path = own_run / "dataset.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"mpp": 0.25}))
    given = [f"input={raw}", f"out={tmp_path / 'out'}"]
    for runs in (f"[{trained},{own_run}]", f"[{own_run},{trained}]"):
        outcome = cli(predict.main, f"runs={runs}", *given)
        assert outcome.code == 2
        assert "labelled in other ways (mpp: 0.25 -> None)" in outcome.err


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ("[{cv}/fold-0,{cv}]", "{cv}/fold-0 is named twice"),
        ("[{cv}/fild-*]", "runs={cv}/fild-*: no folder and no .safetensors file"),
        ("[{cv}/fold-0,{cv}/fold-7]", "run={cv}/fold-7: not a run (no config.yaml)"),
    ],
)
def test_what_is_no_ensemble_is_refused_in_a_line(
    runs: str, words: str, cv: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    given = [f"input={raw}", f"out={tmp_path / 'out'}"]
    for command, more in (
        (predict.main, given),
        (evaluate.main, given[1:]),
        (export.main, [f"out={tmp_path / 'a.onnx'}"]),
    ):
        outcome = cli(command, f"runs={runs.format(cv=cv)}", *more)
        assert (outcome.code, outcome.out) == (2, "")
        assert words.format(cv=cv) in outcome.err
        assert outcome.err.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_a_folder_of_folds_is_not_shown_as_a_run(cv: Path, cli: Cli) -> None:
    outcome = cli(show.main, f"run={cv}")
    assert outcome.code == 2
    assert outcome.err == (
        f"error: run={cv}: a folder of folds; name one of its runs: fold-0, fold-1, fold-2\n"
    )


VALUES: list[Any] = [None, True, -1, 2**70, 1e400, "x", "\x1b[2J", [], {}, [1], {"a": {"b": "c"}}]


def changes(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key in content:
        yield {name: value for name, value in content.items() if name != key}
        for value in VALUES:
            yield content | {key: value}


def test_thresholds_of_a_stranger_are_right_or_refused_in_words(own_cv: Path) -> None:
    """Any ensemble.json, also one that is no file of ours."""
    member = {"fold-0": {"checkpoint": "step_1", "model_sha256": "a"}}
    right = OutOfFold(member, 0.4, 0.3, tta=True)
    path = own_cv / "ensemble.json"
    path.write_text(json.dumps(vars(right)))
    assert read_out_of_fold(own_cv) == right
    contents = [json.dumps(changed) for changed in changes(vars(right))]
    refused = []
    for content in [*contents, "", "[]", "7", "[" * 9999, "{}"]:
        path.write_text(content)
        try:
            found = read_out_of_fold(own_cv)
            assert found is not None
            used = found.thresholds(["tumor"])
        except UserError as error:
            refused.append(str(error))
        except ValueError as error:  # where it is used
            refused.append(str(damaged(own_cv, str(error))))
        else:
            assert 0 < used.pixels.values[0] < 1
            found.is_of(["a"])
    assert len(refused) > len(contents) // 2
    assert all(f"{path}: damaged" in line and line.isprintable() for line in refused)
