"""What --sweep takes, and what it refuses before anything is queued."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from common import command_line
from common.command_line import UsageError
from launch.several.asked import Several
from launch.sweeps.plan import SWEEP, Plan, check_plan, read_plan, record_plan
from launch.sweeps.space import Choices, Numbers, WholeNumbers, divided, parse
from train.config import TrainConfig


def test_a_grid_changes_its_last_key_first() -> None:
    space = parse(["lr=1e-4,1e-3", "schedule=constant, cosine"])
    assert space.is_grid
    assert space.grid() == [
        {"lr": "1e-4", "schedule": "constant"},
        {"lr": "1e-4", "schedule": "cosine"},
        {"lr": "1e-3", "schedule": "constant"},
        {"lr": "1e-3", "schedule": "cosine"},
    ]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("lr=log(1e-4,1e-2)", Numbers(1e-4, 1e-2, is_log=True)),
        ("loss.dice_weight=uniform( 0, 2 )", Numbers(0, 2, is_log=False)),
        ("model.width=int(8,32)", WholeNumbers(8, 32, 1, is_log=False)),
        ("model.width=int(8,32,8)", WholeNumbers(8, 32, 8, is_log=False)),
        ("model.width=intlog(8,64)", WholeNumbers(8, 64, 1, is_log=True)),
        ("crop.flip=true,false", Choices(("true", "false"))),
        ("seed=0,1,2", Choices(("0", "1", "2"))),
        ("preset=unet,demo", Choices(("unet", "demo"))),
        ("batch_size=auto,4", Choices(("auto", "4"))),
    ],
)
def test_words_give_values(word: str, values: object) -> None:
    assert list(parse([word]).values.values()) == [values]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ('["a,b",c],d', ['["a,b",c]', "d"]),
        ("{a: [1,2]},(3,4)", ["{a: [1,2]}", "(3,4)"]),
        ("[Paget's,b],c", ["[Paget's,b]", "c"]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_commas_within_brackets_and_quotes_do_not_divide(text: str, parts: list[str]) -> None:
    assert divided("", text) == parts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"needs KEY=VALUES, as in 'lr=1e-4,1e-3', "),
        (["lr"], "'lr' is not key=value"),
        (["lr=[1e-3,1e-2]"], r"without brackets: --sweep lr=1e-3,1e-2$"),
        (["train.lr=1", "lr=2"], "given twice"),
        (["lrr=1,2"], r"no key 'lrr'.*Did you mean: 'lr'"),
        (["model=1,2"], r"a group of keys: model\.name"),
        (["lr=1e-4,fast"], "lr=fast: expected a number"),
        (["lr="], "lr=: expected a number"),
        (["lr=1e-4,"], "lr=: expected a number"),
        (["schedule=constant,cosinus"], "expected one of constant, cosine"),
        (["epochs=int(0,5)"], "epochs=0: must be at least 1"),
        (["model.width=uniform(8,32)"], r"model\.width=.*: expected a whole number"),
        (["lr=logg(1,2)"], r"no distribution 'logg'; did you mean log\? There are .*'lr=log\("),
        (["lr=beta(1,2)"], r"no distribution 'beta'; there are .*uniform\(0,2\)"),
        (["lr=log(0,1)"], "a logarithm needs numbers above 0"),
        (["model.width=intlog(0,8)"], "a logarithm needs numbers above 0"),
        (["lr=uniform(2,1)"], "2 must be below 1"),
        (["lr=uniform(1,1)"], "1 must be below 1"),
        (["lr=log(1e-4,fast)"], "fast is not a number"),
        (["lr=log(1e-4,inf)"], "inf is not a number"),
        (["lr=uniform(nan,1)"], "nan is not a number"),
        (["lr=log(1e-4)"], "takes the lowest and the highest value$"),
        (["lr=log(1,2,3)"], "takes the lowest and the highest value$"),
        (["model.width=int(8,9,1,1)"], "and perhaps a step"),
        (["model.width=int(8,12.5)"], r"12\.5 is not a whole number"),
        (["model.width=int(8,32,7)"], "no number of steps of 7 from 8 to 32"),
        (["model.width=int(8,32,0)"], "no number of steps of 0"),
        (["lr=1e-3,log(1,2)"], "give a distribution alone"),
        (["lr=1e-3,0.001"], "1e-3 and 0.001 are the same value"),
        (["lr=1", "lr=2"], "given twice"),
        (["lr=[1"], r"a '\]' is missing at the end"),
        (["lr=1]"], r"a '\]' that nothing opens"),
        (["fold=0,1"], "give --folds beside --sweep"),
        (["data=a,b"], "trials share it"),
        (["run=a,b"], "trials share it"),
        (["panels=1,2"], "changes no result"),
        (["resume=same,override"], "changes no result"),
        (["model.norm=batch,group", "model.width=4,8"], "norm=group needs a multiple of 8"),
    ],
)
def test_refusals_say_what_is_wrong(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(words)


def test_values_are_tried_beside_the_other_settings() -> None:
    parse(["tile.overlap_px=8,300"], ["tile.size_px=600"])
    with pytest.raises(UsageError, match="overlap at most half the size"):
        parse(["tile.overlap_px=8,300"])
    with pytest.raises(UsageError, match="given without --sweep too"):
        parse(["lr=1,2"], ["lr=1"])


def test_pipelines_get_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in another folder; an empty value is none."""
    monkeypatch.chdir(tmp_path)
    values = parse(["crop.pipeline=,a.yaml"]).values["crop.pipeline"]
    assert values == Choices(("", str(tmp_path / "a.yaml")))


def test_drawn_numbers_come_back_with_the_same_bits() -> None:
    optuna = pytest.importorskip("optuna")
    space = parse(["lr=log(1e-7,1e-2)", "loss.dice_weight=uniform(0,2)", "model.width=int(8,32,8)"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):
        trial = study.ask()
        given = [f"{key}={value}" for key, value in space.suggest(trial).items()]
        config = command_line.load(TrainConfig, given)
        assert config.lr == trial.params["lr"]
        assert config.loss.dice_weight == trial.params["loss.dice_weight"]
        assert config.model.width in (8, 16, 24, 32)
        assert 1e-7 <= config.lr <= 1e-2
        assert math.isfinite(config.loss.dice_weight)


def test_a_plan_holds_what_its_files_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a task needs none of them, and tells a sweep that goes on with a changed one."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my.yaml"
    file.write_text("seed: 7\nepochs: 3\nlr: 0.5\ninit: model\nmodel: {norm: group}\n")
    words = ["train.lr=log(1e-4,1e-2)", "loss.dice_weight=0,1"]
    several = Several(swept=tuple(words), trials=2)
    given = ["config=my.yaml", "run=S", "data=set"]
    plan = several.sweep(tmp_path / "S", given)
    assert isinstance(plan, Plan)
    record_plan(tmp_path / "S", plan)
    before = command_line.load(TrainConfig, given)
    file.unlink()
    again = read_plan(tmp_path / "S")
    assert again == plan
    assert again.shared == replace(before, config="", run="", lr=1e-4, init=str(tmp_path / "model"))
    file.write_text("seed: 8\nepochs: 3\ninit: model\nmodel: {norm: group}\n")
    with pytest.raises(UsageError, match=r"began with other settings.*\n  seed: 7 -> 8\n"):
        several.sweep(tmp_path / "S", given)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["model.width=8,16"], []),
        (["model.name=unet,smp"], []),
        (["preset=brecahad-cpu,demo"], []),
        (["model.weights=a.pth,b.pth"], ["model.name=smp", "freeze_epochs=1"]),
    ],
)
def test_a_plan_is_read_again_whatever_is_swept(
    words: list[str], given: list[str], tmp_path: Path
) -> None:
    """It records each key that is not swept, those of other networks too."""
    plan = Several(swept=tuple(words), trials=2).sweep(tmp_path, [*given, "data=set"])
    assert isinstance(plan, Plan)
    swept = words[0].partition("=")[0]
    assert not [setting for setting in plan.settings if setting.startswith(f"{swept}=")]
    assert [setting for setting in plan.settings if setting.startswith("model.depth=")]
    record_plan(tmp_path, plan)
    again = read_plan(tmp_path)
    assert again.shared.seed == 0
    record_plan(tmp_path, again)


def test_swept_files_are_recorded_with_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Several(swept=("init=,a", "lr=1,2"), trials=2).sweep(tmp_path / "S", [])
    assert isinstance(plan, Plan)
    assert plan.sweep == [f"init=,{tmp_path}/a", "lr=1,2"]


def test_a_sweep_goes_on_only_with_the_settings_that_it_began_with(tmp_path: Path) -> None:
    words = ["lr=log(1e-4,1e-2)", "model.width=8,16"]
    record_plan(tmp_path, Plan(words, ["epochs=3", "panels=1"]))
    # another way to write the same, and what changes no result
    same = Plan(["lr=log(0.0001,0.01)", words[1]], ["epochs=3"], prune="off")
    record_plan(tmp_path, same)
    assert read_plan(tmp_path) == same
    others = {
        "epochs: 3 -> 4": Plan(words, ["epochs=4"]),
        r"--sweep: .* -> 'lr=log\(1e-4,1e-1\)' model.width=8,16": Plan(
            ["lr=log(1e-4,1e-1)", words[1]], ["epochs=3"]
        ),
        r"--sweep: ": Plan(words[::-1], ["epochs=3"]),
        "without folds -> with": Plan(words, ["epochs=3"], has_folds=True),
        "data: .* -> other": Plan(words, ["epochs=3", "data=other"]),
        "seed: 0 -> 1": Plan(words, ["epochs=3", "seed=1"]),
    }
    for message, other in others.items():
        with pytest.raises(UsageError, match=message):
            check_plan(tmp_path, other)
    assert read_plan(tmp_path) == same


def test_another_file_with_the_name_of_a_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / SWEEP).write_text('{"sweep": "lr"}')
    with pytest.raises(command_line.UserError, match=r"sweep\.json: .*move it away"):
        record_plan(tmp_path, Plan(["lr=1,2"], []))
