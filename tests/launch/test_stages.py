"""What each stage is told: by default, by name, and what is refused before anything is queued."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from common.command_line import UsageError
from data_prep.__main__ import main as data_prep
from data_prep.images.stains import parse
from launch.cluster.profiles import Profile
from launch.queueing import with_kept_config
from launch.record.events import write_submission
from launch.stages import (
    Request,
    check,
    choose_stages,
    load_training,
    stage_arguments,
    with_contents,
)
from launch.submit import main as submit
from tests.data_prep.images.stained import ONE, OTHER, draw
from tests.launch.fakes import answer
from train.runs.newest import CONFIG

ALL = ["prepare", "train", "evaluate"]
FETCH = "python -m data_prep.fetch downloads BreCaHAD there"
SYNTHETIC = "python -m data_prep.synthetic out=data/BreCaHAD makes a synthetic data set instead"


pytestmark = pytest.mark.usefixtures("here")


def prepare_here(**settings: Any) -> None:
    """Prepare data/BreCaHAD as a user would."""
    given = {"copies": 1, "workers": 1, "split.val": 0, "split.test": 0} | settings
    assert data_prep([f"{key}={value}" for key, value in given.items()]) == 0


class TestBare:
    """`python launch/submit.py` with nothing else."""

    def test_without_data_one_line_says_how_to_get_it_or_draw_it(self) -> None:
        with pytest.raises(UsageError) as refused:
            submit(["--dry-run", "--nodes", "2"])
        assert FETCH in str(refused.value)
        assert SYNTHETIC in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_it_prepares_trains_and_evaluates_in_the_usual_places(
        self, brecahad: Path, here: Path
    ) -> None:
        request = Request({}, here / "runs/1")
        assert choose_stages("", request) == ALL
        assert stage_arguments(ALL, request, Profile(cpus_per_task=3)) == {
            "prepare": [f"out={here}/data/prepared", "workers=3", f"raw={brecahad}"],
            "train": [f"data={here}/data/prepared", f"run={here}/runs/1"],
            "evaluate": [f"run={here}/runs/1"],
        }

    def test_what_is_prepared_is_used_again(self, brecahad: Path, here: Path) -> None:
        prepare_here()
        request = Request({"epochs": "3"}, here / "runs/2")
        assert choose_stages("", request) == ["train", "evaluate"]
        check(stage_arguments(["train", "evaluate"], request, Profile()), request)
        assert choose_stages("", Request({"copies": "1"}, here / "runs/2")) == ALL
        assert choose_stages("", Request({"raw": "data/BreCaHAD"}, here / "runs/2")) == ALL

    def test_a_dry_run_makes_nothing(
        self, brecahad: Path, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert submit(["--dry-run", "--nodes", "2"]) == 0
        assert "#SBATCH --nodes=2" in capsys.readouterr().out
        assert [path.name for path in here.iterdir()] == ["data"]
        assert [path.name for path in (here / "data").iterdir()] == ["BreCaHAD"]


class TestData:
    """Where the prepared data set is."""

    def test_other_raw_fields_are_prepared_in_the_run(self, here: Path) -> None:
        request = Request({"raw": "mine"}, here / "runs/1")
        assert request.data == here / "runs/1/prepared"

    def test_a_run_that_goes_on_keeps_its_data(self, here: Path) -> None:
        (here / "run").mkdir()
        (here / "run" / CONFIG).write_text("data: /elsewhere\nbatch_size: 8\nmicrobatches: 2\n")
        request = Request({}, here / "run")
        assert request.data == Path("/elsewhere")
        assert request.begun is not None
        assert request.begun.batch == (8, 2)

    def test_a_data_set_that_is_named_is_taken_for_one_that_is_there(self, here: Path) -> None:
        request = Request({"data": "typo"}, here / "runs/1")
        assert choose_stages("", request) == ["train", "evaluate"]
        with pytest.raises(UsageError, match=r"data=.*typo: no prepared data set; leave data= out"):
            check(stage_arguments(["train"], request, Profile()), request)

    def test_what_runs_may_be_using_is_not_prepared_in_another_way(
        self, brecahad: Path, here: Path
    ) -> None:
        prepare_here()
        same = Request({"copies": "1", "split.val": "0", "split.test": "0"}, here / "runs/1")
        check(stage_arguments(ALL, same, Profile()), same)
        other = Request({**same.settings, "copies": "4", "radius_px": "9"}, here / "runs/1")
        with pytest.raises(UsageError) as refused:
            check(stage_arguments(ALL, other, Profile()), other)
        assert "(radius_px: 20 -> 9; copies: 1 -> 4)" in str(refused.value)
        assert "give radius_px=20 copies=1 to use that one" in str(refused.value)
        assert f"or data={here}/data/prepared-2 for a data set of its own" in str(refused.value)
        elsewhere = Request({**other.settings, "data": "data/prepared-2"}, here / "runs/1")
        assert choose_stages("", elsewhere) == ALL
        check(stage_arguments(ALL, elsewhere, Profile()), elsewhere)

    def test_nor_what_a_job_in_the_queue_will_prepare(
        self, brecahad: Path, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bin_folder = here / "bin"
        bin_folder.mkdir()
        monkeypatch.setenv("PATH", str(bin_folder))
        answer(bin_folder, "sbatch", "")
        answer(bin_folder, "scontrol", "JobId=7 JobState=PENDING")
        first = Request({}, here / "runs/1")
        prepare = stage_arguments(["prepare"], first, Profile(cpus_per_task=2))["prepare"]
        first.run.joinpath("launch").mkdir(parents=True)
        about = {"time_s": 0, "revision": "", "jobs": {"join": "7"}, "prepare": prepare}
        write_submission(first.run, about)
        other = Request({"copies": "4"}, here / "runs/2")
        with pytest.raises(UsageError, match=r"is being prepared for .*runs/1 .*copies: 16 -> 4"):
            check(stage_arguments(ALL, other, Profile()), other)
        same = Request({"epochs": "4"}, here / "runs/2")
        check(stage_arguments(ALL, same, Profile()), same)
        about["prepare"] = [*prepare, "copies=4"]
        write_submission(first.run, about)
        with pytest.raises(UsageError, match="give copies=4 to use that one"):
            check(stage_arguments(ALL, same, Profile()), same)
        answer(bin_folder, "scontrol", "JobId=7 JobState=COMPLETED")
        check(stage_arguments(ALL, other, Profile()), other)


def test_names_that_leave_patients_apart_are_refused_before_anything_is_queued(
    brecahad: Path,
) -> None:
    for path in sorted(brecahad.rglob("Case_*")):
        path.rename(path.with_name(path.name.replace("Case_", "patient").replace("-", "_roi")))
    with pytest.raises(UsageError, match=r"prepare: one patient could be in train and in test"):
        submit(["--dry-run"])


def test_paths_are_told_from_the_root(here: Path) -> None:
    """Jobs run in another folder than the one a user submits from."""
    given = {"raw": "r", "data": "d", "config": "c.yaml", "evaluate.raw": "e", "epochs": "3"}
    arguments = stage_arguments(ALL, Request(given, Path("/runs/a")), Profile())
    assert {f"out={here / 'd'}", f"raw={here / 'r'}"} <= {*arguments["prepare"]}
    assert {f"data={here / 'd'}", f"config={here / 'c.yaml'}"} <= {*arguments["train"]}
    assert f"raw={here / 'e'}" in arguments["evaluate"]
    kept = with_kept_config(arguments, Path("/code"))
    assert "config=/code/config.yaml" in kept["train"]


def test_a_key_goes_to_every_stage_that_knows_it_and_a_prefixed_one_to_its_own() -> None:
    given = {"raw": "/r", "seed": "7", "copies": "3", "amp": "off", "evaluate.split": "val"}
    assert stage_arguments(ALL, Request(given, Path("/runs/a")), Profile(cpus_per_task=3)) == {
        "prepare": ["out=/runs/a/prepared", "workers=3", "raw=/r", "seed=7", "copies=3"],
        "train": ["data=/runs/a/prepared", "run=/runs/a", "seed=7", "amp=off"],
        "evaluate": ["run=/runs/a", "amp=off", "split=val"],
    }


OF_RAW = {"annotations": "csv", "empty": "accept", "ignore_px": "4", "mpp": "0.5"}


def test_how_raw_fields_are_read_is_of_the_data_set_unless_evaluation_reads_others(
    brecahad: Path, here: Path
) -> None:
    """Evaluation takes it from the data set, and refuses it where it reads no raw fields."""
    given = {f"{key}={value}" for key, value in OF_RAW.items()}
    request = Request(OF_RAW, here / "run")
    arguments = stage_arguments(ALL, request, Profile())
    assert given <= {*arguments["prepare"]}
    assert arguments["evaluate"] == [f"run={here}/run"]
    check({stage: arguments[stage] for stage in ("evaluate",)}, request)
    others = Request(OF_RAW | {"evaluate.raw": "other"}, here / "run")
    arguments = stage_arguments(ALL, others, Profile())
    assert given <= {*arguments["prepare"]}
    assert given <= {*arguments["evaluate"]}
    with pytest.raises(UsageError, match=r"evaluate: mpp=0\.5: only with raw="):
        check(stage_arguments(["evaluate"], request, Profile()), request)


@pytest.mark.parametrize("key", ["ignore_px", "ignore_value"])
def test_a_chain_takes_what_is_ignored(
    key: str, brecahad: Path, here: Path, cli: Callable[..., Any]
) -> None:
    """Also without raw=: it is then what to prepare."""
    given = {"ignore_px": ["ignore_px=4"], "ignore_value": ["ignore_value=none"]}[key]
    done = cli(submit, "--dry-run", "--cluster", "local", *given)
    assert done.code == 0, done.err
    prepare, _, evaluate = done.out.splitlines()
    assert prepare.endswith(given[0])
    assert key not in evaluate
    prepare_here()
    assert choose_stages("", Request({key: "4"}, here / "run")) == ALL
    assert "prepare" not in choose_stages("", Request({key: "4", "evaluate.raw": "r"}, here / "r"))


def test_stages_that_are_named_run_in_their_order() -> None:
    assert choose_stages("evaluate,train", Request({"raw": "x"}, Path("/a"))) == ALL[1:]


class TestPipelines:
    """A job starts in another folder, days later: it gets what the file held when it was queued."""

    BLUR = "transform: {__class_fullname__: Blur, p: 1.0}"
    CONTENT = '{"transform":{"__class_fullname__":"Blur","p":1.0}}'

    @pytest.mark.parametrize("train", ["crop.pipeline=a.yaml", "config=settings.yaml"])
    def test_jobs_get_the_content_of_relative_files(
        self, train: str, brecahad: Path, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "a.yaml").write_text(self.BLUR)
        (here / "settings.yaml").write_text("crop: {pipeline: a.yaml}")
        given = dict(each.split("=") for each in (train, "augment.pipeline=a.yaml", "copies=10"))
        request = Request(given | {"split.val": "0", "split.test": "0"}, here / "run")
        arguments = with_contents(stage_arguments(ALL, request, Profile(cpus_per_task=1)))
        (here / "a.yaml").unlink()
        (here / "elsewhere").mkdir()
        monkeypatch.chdir(here / "elsewhere")
        assert load_training(arguments["train"]).crop.pipeline == self.CONTENT
        assert sum(each.startswith("crop.pipeline=") for each in arguments["train"]) == 1
        assert data_prep(arguments["prepare"]) == 0
        (about,) = [json.loads(file.read_text()) for file in here.glob("data/*/dataset.json")]
        assert about["config"]["augment"]["pipeline"] == self.CONTENT
        assert len([*here.glob("data/prepared/images/*_v09_pipeline.jpg")]) == 4

    def test_a_script_shows_the_content(
        self, brecahad: Path, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (here / "a.yaml").write_text(self.BLUR)
        assert submit(["--dry-run", "crop.pipeline=a.yaml", "augment.pipeline=a.yaml"]) == 0
        out = capsys.readouterr().out
        for key in ("crop.pipeline", "augment.pipeline"):
            assert f"'{key}={self.CONTENT}'" in out

    def test_they_are_checked_before_anything_is_queued(self, brecahad: Path, here: Path) -> None:
        (here / "a.yaml").write_text("transform: {__class_fullname__: Lambda}")
        for stage, key in (("prepare", "augment.pipeline"), ("train", "crop.pipeline")):
            with pytest.raises(UsageError, match=f"^{stage}: {key}=a.yaml: Lambda: runs code"):
                submit(["--dry-run", f"{key}=a.yaml"])

    def test_a_changed_file_asks_for_another_data_set(self, brecahad: Path, here: Path) -> None:
        (here / "a.yaml").write_text(self.BLUR)
        prepare_here(**{"augment.pipeline": "a.yaml"})
        given = {"augment.pipeline": "a.yaml", "copies": "1", "split.val": "0", "split.test": "0"}
        request = Request(given, here / "run")
        check(stage_arguments(ALL, request, Profile()), request)
        (here / "a.yaml").write_text(self.BLUR.replace("1.0", "0.5"))
        with pytest.raises(UsageError, match=r"was prepared in another way .augment\.pipeline: "):
            check(stage_arguments(ALL, request, Profile()), request)


class TestStains:
    """A chain is given the numbers of a reference: its file may change, and is not on the node."""

    @pytest.fixture
    def settings(self, brecahad: Path) -> dict[str, str]:
        """Those of a set without other cases than for training, and an image beside it."""
        cv2.imwrite("reference.png", draw(OTHER, 60, 80)[..., ::-1])
        return {"stain_norm": "macenko", "copies": "1", "split.val": "0", "split.test": "0"}

    def test_jobs_get_the_numbers_of_a_relative_file(
        self, settings: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = Request(settings | {"stain_reference": "reference.png"}, here / "run")
        arguments = with_contents(stage_arguments(ALL, request, Profile(cpus_per_task=1)))
        (here / "reference.png").unlink()
        (here / "elsewhere").mkdir()
        monkeypatch.chdir(here / "elsewhere")
        assert sum(each.startswith("stain_reference=") for each in arguments["prepare"]) == 1
        assert data_prep(arguments["prepare"]) == 0
        about = json.loads((here / "data/prepared/dataset.json").read_text())
        found = parse(about["config"]["stain_reference"])
        assert found.hematoxylin == pytest.approx(OTHER.hematoxylin, abs=0.05)

    @pytest.mark.parametrize("given", ["", "reference.png"])
    def test_what_was_prepared_with_the_same_reference_is_used_again(
        self, given: str, settings: dict[str, str], here: Path
    ) -> None:
        settings |= {"stain_reference": given}
        prepare_here(**settings)
        request = Request(settings, here / "run")
        check(stage_arguments(ALL, request, Profile()), request)
        cv2.imwrite("reference.png", draw(ONE, 60, 80)[..., ::-1])
        other = Request(settings | {"stain_reference": "reference.png"}, here / "run")
        with pytest.raises(UsageError, match=r"was prepared in another way \(stain_reference: "):
            check(stage_arguments(ALL, other, Profile()), other)

    def test_a_field_of_a_case_that_is_tested_is_refused(
        self, settings: dict[str, str], brecahad: Path, here: Path
    ) -> None:
        """Before anything is queued: jobs are given numbers, and know of no file."""
        (image,) = brecahad.glob("images/Case_2-01.tif")
        cv2.imwrite(str(image), draw(ONE, 120, 160)[..., ::-1])
        settings |= {"split.test_cases": "[2]", "stain_reference": str(image)}
        with pytest.raises(UsageError, match=r"prepare: .*Case_2-01.tif: is of Case_2, and it is "):
            submit(["--dry-run", *(f"{key}={value}" for key, value in settings.items())])
