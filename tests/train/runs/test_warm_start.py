"""Runs that begin with the weights of others: which weights these are, and which are refused."""

import dataclasses
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.command_line import EXIT_STOPPED, EXIT_USAGE, UserError
from common.schema import json_sha256
from tests.faults.training import digests
from tests.forked_ranks import ForkedRanks
from tests.processes import prepare_alone
from tests.train.conftest import TINY
from train import __main__ as train_main
from train import evaluate, export, show
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.load_checkpoint import load_all_tensors
from train.config import TrainConfig
from train.loop.trainer import Trainer
from train.runs.run_folder import read_run

Tiny = Callable[..., TrainConfig]
NewTrainer = Callable[[TrainConfig], Trainer]
Cli = Callable[..., Any]
ONE_EPOCH = (*TINY, "epochs=1", "batch_size=2", "microbatches=2")


def prepared_into(out: Path, raw: Path, *settings: str) -> Path:
    """These fields, with no variants."""
    given = [f"raw={raw}", f"out={out}", "copies=1", "format=png", "radius_px=8"]
    prepare_alone(*given, *settings)
    return out


@pytest.fixture(scope="module")
def others(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without cases 1 and 2, which the finished run was trained on; case 3 is for training."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "raw").mkdir()
    for path in raw.iterdir():
        if not path.name.startswith(("Case_1", "Case_2")):
            shutil.copy(path, folder / "raw")
    lists = ("split.val_cases=[4]", "split.test_cases=[5]")
    return prepared_into(folder / "set", folder / "raw", *lists)


@pytest.fixture(scope="module")
def swapped(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases 1 and 2, which the finished run was trained on, are measured here."""
    lists = ("split.val_cases=[1]", "split.test_cases=[2,5]")
    return prepared_into(tmp_path_factory.mktemp("swapped") / "set", raw, *lists)


@pytest.fixture(scope="module")
def second(trained: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on case 3 that began with the weights of the finished run."""
    run = tmp_path_factory.mktemp("runs") / "second"
    given = [f"data={others}", f"run={run}", f"init={trained}", *ONE_EPOCH]
    assert train_main.main(given) == 0
    return run


@pytest.fixture(scope="module")
def exported(second: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second run's best model as a file."""
    file = tmp_path_factory.mktemp("exported") / "second.safetensors"
    assert export.main([f"run={second}", f"out={file}"]) == 0
    return file


def tensors_of(run: Path, checkpoint: str) -> dict[str, Tensor]:
    """The network's tensors of a checkpoint, by their names in its state."""
    folder = run / "checkpoints"
    name = (folder / checkpoint).read_text().strip() if checkpoint == "best" else checkpoint
    loaded = load_all_tensors(folder / name)
    return {
        name.removeprefix("model."): tensor
        for name, tensor in loaded.items()
        if name.startswith("model.")
    }


def parameters_of(tensors: dict[str, Tensor]) -> list[str]:
    """Names of what the optimizer changes: no running statistics."""
    return [name for name in tensors if "running" not in name]


class TestWeights:
    def test_a_run_begins_with_the_weights_and_nothing_else(
        self, trained: Path, tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
    ) -> None:
        state = new_trainer(tiny(tmp_path / "run", f"init={trained}", "seed=7")).state
        source = tensors_of(trained, "best")
        found = state.model.state_dict()
        assert found.keys() == source.keys()
        assert all(torch.equal(found[name], source[name]) for name in source)
        moments = [value for each in state.optimizer.state.values() for value in each.values()]
        assert not any(value.any() for value in moments)
        assert state.progress.step == 0

    def test_an_exported_file_gives_the_same_weights(
        self, second: Path, exported: Path, others: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """They change by nothing at a learning rate of nothing, but for the statistics."""
        given = [f"data={others}", *ONE_EPOCH, "lr=1e-30"]
        for init, run in ((second, tmp_path / "a"), (exported, tmp_path / "b")):
            assert cli(train_main.main, *given, f"run={run}", f"init={init}").code == 0
        source = tensors_of(second, "best")
        for found in (tensors_of(tmp_path / name, "best") for name in "ab"):
            assert all(torch.equal(found[name], source[name]) for name in parameters_of(source))

    def test_it_is_recorded_what_they_are_and_have_seen(
        self, trained: Path, second: Path, exported: Path
    ) -> None:
        (origin,) = json.loads((second / "init.json").read_text())["origins"]
        best = (trained / "checkpoints/best").read_text().strip()
        assert origin == {
            "source": "trained",
            "checkpoint": best,
            "step": int(best.removeprefix("step_")),
            "model_sha256": tensors_sha256({"model": tensors_of(trained, "best")}),
            "train": ["Case_1", "Case_2"],
            "val": ["Case_3"],
            "case_regex": origin["case_regex"],
        }
        assert read_run(second).origins == read_run(exported).origins
        assert [each.source for each in read_run(exported).origins] == ["trained"]

    def test_the_last_layer_is_made_anew_for_other_classes(
        self, trained: Path, raw: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """All other layers are the source's; that one is as the seed makes it without init=."""
        (tmp_path / "raw").mkdir()
        for path in raw.glob("Case_[345]*"):
            shutil.copy(path, tmp_path / "raw")
        for path in (tmp_path / "raw").glob("*.json"):
            points = json.loads(path.read_text())["tumor"]
            path.write_text(json.dumps({"tumor": points[:2], "lumen": points[2:]}))
        classes = ("classes=[tumor,lumen]", "labels=per_class")
        lists = ("split.val_cases=[4]", "split.test_cases=[5]")
        data = prepared_into(tmp_path / "set", tmp_path / "raw", *classes, *lists)
        given = [f"data={data}", *ONE_EPOCH, "lr=1e-30"]
        outcome = cli(train_main.main, *given, f"run={tmp_path / 'warm'}", f"init={trained}")
        assert outcome.code == 0, outcome.err
        assert (
            "last layer, which is made anew: other classes (tumor -> tumor, lumen)" in outcome.out
        )
        assert cli(train_main.main, *given, f"run={tmp_path / 'cold'}").code == 0
        warm, cold = (tensors_of(tmp_path / name, "best") for name in ("warm", "cold"))
        source = tensors_of(trained, "best")
        for name in parameters_of(source):
            expected = cold if name.startswith("head.") else source
            assert torch.equal(warm[name], expected[name]), name
        assert len(warm["head.weight"]) == 2
        assert json.loads((tmp_path / "warm/init.json").read_text())["made_anew"] == ["head"]

    def test_two_ranks_and_a_resume_without_the_source_give_the_same_bits(
        self, trained: Path, tiny: Tiny, tmp_path: Path, cli: Cli
    ) -> None:
        """Stopped while the encoder is frozen; the source is gone when one rank goes on."""
        source = Path(shutil.copytree(trained, tmp_path / "source"))
        data = tiny(tmp_path).data
        given = [f"data={data}", f"init={source}", *TINY, "epochs=3", "freeze_epochs=2"]
        given += ["save_every_s=0", "model.dropout=0.2"]
        assert cli(train_main.main, *given, f"run={tmp_path / 'one'}").code == 0
        stopped = [*given, f"run={tmp_path / 'two'}"]
        launch = ForkedRanks("train.__main__", stopped, 2, tmp_path / "log")
        latest = tmp_path / "two/checkpoints/latest"
        launch.wait_for(latest.is_file)
        launch.send(0, signal.SIGTERM)
        assert launch.end(patience_s=20) == [EXIT_STOPPED] * 2
        shutil.rmtree(source)
        resumed = cli(train_main.main, *stopped)
        assert resumed.code == 0
        assert "resumed from" in resumed.out
        assert digests(tmp_path / "two") == digests(tmp_path / "one")

    def test_a_start_that_saved_nothing_is_repeated_with_the_weights_it_recorded(
        self, trained: Path, tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
    ) -> None:
        """Whatever is the best of the source by now; without them it is refused."""
        source = Path(shutil.copytree(trained, tmp_path / "source"))
        config = tiny(tmp_path / "run", f"init={source}")
        first = new_trainer(config).state.model.state_dict()
        best = source / "checkpoints/best"
        recorded = source / "checkpoints" / best.read_text().strip()
        (other,) = [path for path in source.glob("checkpoints/step_*") if path != recorded]
        best.write_text(f"{other.name}\n")
        again = new_trainer(config).state.model.state_dict()
        assert all(torch.equal(again[name], first[name]) for name in first)
        shutil.rmtree(recorded)
        with pytest.raises(UserError, match="has saved nothing yet: remove its folder"):
            new_trainer(config)
        shutil.copytree(other, recorded)
        with pytest.raises(UserError, match="has saved nothing yet: remove its folder"):
            new_trainer(config)
        shutil.rmtree(tmp_path / "run")
        new = new_trainer(config).state.model.state_dict()
        assert all(
            torch.equal(new[name], kept) for name, kept in tensors_of(source, "best").items()
        )
        config = dataclasses.replace(config, init=str(source.rename(tmp_path / "moved")))
        again = new_trainer(config).state.model.state_dict()
        assert all(torch.equal(again[name], new[name]) for name in new)

    def test_the_encoder_stays_as_it_is_for_the_epochs_that_are_asked(
        self, trained: Path, tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
    ) -> None:
        """Its running statistics too; all else is trained from the first step."""
        run = tmp_path / "run"
        config = tiny(run, f"init={trained}", "freeze_epochs=1", "weight_decay=0.1")
        assert new_trainer(config).fit() == 0
        source, *epochs = (
            tensors_of(trained, "best"),
            tensors_of(run, "step_00000004"),
            tensors_of(run, "step_00000008"),
        )
        encoder = {name for name in source if name.startswith("encoder.")}
        assert any("running_mean" in name for name in encoder)
        for name in source:
            assert torch.equal(epochs[0][name], source[name]) == (name in encoder), name
            assert not torch.equal(epochs[1][name], epochs[0][name]), name


class TestGuard:
    @pytest.mark.parametrize(
        ("source", "whose"), [("trained", "it"), ("second", "trained"), ("exported", "trained")]
    )
    def test_a_case_that_was_trained_on_is_not_measured(
        self,
        source: str,
        whose: str,
        swapped: Path,
        tmp_path: Path,
        cli: Cli,
        request: pytest.FixtureRequest,
    ) -> None:
        """The second run trained on case 3 itself, and on 1 and 2 through what it began with."""
        init, run = request.getfixturevalue(source), tmp_path / "run"
        given = [f"data={swapped}", f"run={run}", *ONE_EPOCH]
        slower = ("freeze_epochs=1", "encoder_lr_factor=0.5")
        outcome = cli(train_main.main, *given, f"init={init}", *slower)
        assert outcome.code == EXIT_USAGE
        by = "it" if whose == "it" else "trained, from whose weights it comes,"
        assert f"{by} was trained on Case_1 (val), Case_2 (test)" in outcome.err
        assert "'split.test_cases=[Case_5]' split.val=0. If" in outcome.err
        assert not run.exists()
        accepted = outcome.err.strip().rpartition("\n")[2].split()
        assert accepted[:3] == ["python", "-m", "train"]
        assert accepted[-3:] == ["init=", "freeze_epochs=0", "encoder_lr_factor=1"]
        assert cli(train_main.main, *accepted[3:]).code == 0

    def test_without_its_record_a_run_is_no_source(
        self, second: Path, swapped: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """Or the cases that it has seen would be forgotten; nor can it be measured."""
        source = Path(shutil.copytree(second, tmp_path / "source"))
        given = [f"data={swapped}", f"run={tmp_path / 'run'}", f"init={source}", *ONE_EPOCH]
        record = source / "init.json"
        content = record.read_text()
        for damage in (content.replace("Case_1", "Case_9"), None):
            record.unlink() if damage is None else record.write_text(damage)
            for main, arguments in ((train_main.main, given), (evaluate.main, [f"run={source}"])):
                outcome = cli(main, *arguments)
                assert outcome.code != 0
                assert "init.json: missing or damaged" in outcome.err

    @pytest.mark.parametrize("name", ["second", "trained"])
    def test_a_record_of_no_model_is_not_that_of_a_run_with_one(
        self, name: str, tmp_path: Path, cli: Cli, request: pytest.FixtureRequest
    ) -> None:
        """Nor one of a model that of a run which began with random weights. The hash is right."""
        run = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "run"))
        kept = request.getfixturevalue("second") / "init.json"
        origins = [] if name == "second" else json.loads(kept.read_text())["origins"]
        content = {"origins": origins, "made_anew": [], "encoder": None}
        (run / "init.json").write_text(json.dumps({**content, "sha256": json_sha256(content)}))
        outcome = cli(show.main, f"run={run}")
        assert outcome.code == 1
        assert f"{len(origins)} origins, of a run with init=" in outcome.err

    def test_a_run_that_lost_its_record_does_not_go_on(
        self, second: Path, trained: Path, others: Path, tmp_path: Path, cli: Cli
    ) -> None:
        run = Path(shutil.copytree(second, tmp_path / "run"))
        given = [f"data={others}", f"run={run}", f"init={trained}", *ONE_EPOCH]
        assert "is finished" in cli(train_main.main, *given).out
        (run / "init.json").unlink()
        outcome = cli(train_main.main, *given)
        assert outcome.code == 1
        assert "init.json: missing" in outcome.err

    def test_a_fold_is_not_tested_with_weights_of_another_fold(
        self, raw: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """What one fold tests, the other was trained on; the same fold may go on from its own."""
        data = prepared_into(tmp_path / "set", raw, "split.folds=cases")
        given = [f"data={data}", *ONE_EPOCH]
        source = tmp_path / "cv/fold-0"
        assert cli(train_main.main, *given, f"run={source}", "fold=0").code == 0
        outcome = cli(train_main.main, *given, f"run={tmp_path / 'a'}", "fold=1", f"init={source}")
        assert outcome.code == EXIT_USAGE
        # fold 0 tests case 1 and validates on case 2; fold 1 tests 2 and validates on 3
        assert "it was trained on Case_3 (val)" in outcome.err
        accepted = [line.split() for line in outcome.err.splitlines() if "-m train" in line]
        assert [re.findall(r"fold=\S+", " ".join(words)) for words in accepted] == [
            ["fold=0"], ["fold=all"], ["fold=1"],
        ]  # fmt: skip
        assert cli(train_main.main, *accepted[0][3:]).code == 0
        folder = cli(train_main.main, *given, "fold=0", f"init={source.parent}")
        assert folder.code == EXIT_USAGE
        assert f"a folder of several runs; name one of them, as in init={source}" in folder.err

    def test_what_is_inherited_counts_as_trained_on_in_an_evaluation(
        self, second: Path, exported: Path, raw: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """Case 3 is the run's own; it began with weights that had seen 1 and 2."""
        for number, run in enumerate((second, exported)):
            out = tmp_path / str(number)
            assert cli(evaluate.main, f"run={run}", f"raw={raw}", f"out={out}").code == 0
            warnings = json.loads((out / "summary.json").read_text())["warnings"]
            listed = "Case_1, Case_2, Case_3"
            assert f"trained on: {listed}; these figures do not show new patients" in warnings
            assert any("(init=) were chosen on: Case_3;" in warning for warning in warnings)


class TestRefusals:
    def test_another_network(self, trained: Path, others: Path, tmp_path: Path, cli: Cli) -> None:
        given = [f"data={others}", f"run={tmp_path / 'run'}", f"init={trained}", *ONE_EPOCH]
        others_settings = ["model.width=8" if "width" in each else each for each in given]
        outcome = cli(train_main.main, *others_settings, "model.norm=group", "model.dropout=0.1")
        assert outcome.code == EXIT_USAGE
        assert "model.width: 4 there, 8 here; model.norm: batch there, group here" in outcome.err
        first, second = outcome.err.splitlines()[1:]
        assert ("model.width=4" in first, "model.norm=batch" in first) == (True, True)
        assert "init= " in second
        assert cli(train_main.main, *first.split()[3:]).code == 0

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("nowhere", "not a run (no config.yaml); give the run= of train"),
            ("empty.safetensors", "damaged"),
            ("weights.pt", "neither a run nor a .safetensors file of train.export"),
            ("unsaved", "no checkpoint was saved yet"),
        ],
    )
    def test_what_is_no_model(
        self, name: str, told: str, trained: Path, others: Path, tmp_path: Path, cli: Cli
    ) -> None:
        (tmp_path / "empty.safetensors").write_bytes(b"")
        torch.save({}, tmp_path / "weights.pt")
        (tmp_path / "unsaved").mkdir()
        shutil.copy(trained / "config.yaml", tmp_path / "unsaved")
        init = tmp_path / name
        given = [f"data={others}", f"run={tmp_path / 'run'}", f"init={init}", *ONE_EPOCH]
        outcome = cli(train_main.main, *given)
        assert outcome.code in (1, EXIT_USAGE)
        assert outcome.err.startswith(f"error: init={init}: ")
        assert told in outcome.err
        assert not (tmp_path / "run/config.yaml").exists()

    def test_freezing_without_weights_to_keep(self) -> None:
        with pytest.raises(ValueError, match="freeze_epochs=1: only with init="):
            TrainConfig(freeze_epochs=1)

    def test_a_run_keeps_what_it_began_with(
        self, second: Path, trained: Path, others: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """No other model, and not none; not with resume=override either."""
        run = Path(shutil.copytree(second, tmp_path / "run"))
        given = [f"data={others}", f"run={run}", *ONE_EPOCH, "resume=override"]
        for init in ("", str(second)):
            outcome = cli(train_main.main, *given, f"init={init}")
            assert outcome.code == EXIT_USAGE
            assert f"init: {trained} -> {init}" in outcome.err
            (accepted,) = [line for line in outcome.err.splitlines() if "-m train" in line]
            assert "is finished" in cli(train_main.main, *accepted.split()[3:]).out

    def test_a_run_goes_on_where_its_project_was_moved(
        self, second: Path, trained: Path, others: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """The model is known by its weights; where they are gone, by its name."""
        run = Path(shutil.copytree(second, tmp_path / "second"))
        source = Path(shutil.copytree(trained, tmp_path / "trained"))
        given = [f"data={others}", f"run={run}", *ONE_EPOCH]
        outcome = cli(train_main.main, *given, f"init={source}")
        assert "is finished" in outcome.out, outcome.err
        assert f"init: {source}" in (run / "config.yaml").read_text()
        assert "the same as in config.yaml" in cli(show.main, f"run={run}").out
        best = source / "checkpoints" / (source / "checkpoints/best").read_text().strip()
        (other,) = [path for path in source.glob("checkpoints/step_*") if path != best]
        shutil.rmtree(best)
        other.rename(best)
        again = Path(shutil.copytree(second, tmp_path / "again"))
        given[1] = f"run={again}"
        refused = cli(train_main.main, *given, f"init={source}")
        assert refused.code == EXIT_USAGE
        assert f"init: {trained} -> {source}" in refused.err
        shutil.rmtree(source)
        assert "is finished" in cli(train_main.main, *given, f"init={source}").out
        assert cli(train_main.main, *given, f"init={tmp_path / 'nowhere'}").code == EXIT_USAGE


def test_show_says_what_a_run_began_with(second: Path, cli: Cli) -> None:
    out = cli(show.main, f"run={second}").out
    assert re.search(r"^began with    trained, step_0{7}[48]$", out, re.MULTILINE)
