"""Command lines are taken apart as submit.py does, and put together again."""

import shlex
from dataclasses import replace

import pytest

from launch import submit
from launch.command_lines import CommandLine, parse


@pytest.mark.parametrize(
    ("argv", "whole"),
    [
        ("--time-min 90 a=1", "--time-min 5 a=1"),
        ("--time-min=90 a=1", "--time-min 5 a=1"),
        ("a=1 --nodes 1-2 --time-min 90 b=", "--nodes 1-2 --time-min 5 a=1 b="),
        ("--dry-run preset=unet", "--dry-run --time-min 5 preset=unet"),
        ("--nodes 1 a=1 --nodes 2 a=2", "--nodes 2 --time-min 5 a=2"),
        ("--partition= --constraint '' a=1", "--partition '' --constraint '' --time-min 5 a=1"),
        ("--nodes 2 -- a=b=c", "--nodes 2 --time-min 5 a=b=c"),
        ("--constraint 'a|b' 'run=my run'", "--constraint 'a|b' --time-min 5 'run=my run'"),
        ("", "--time-min 5"),
    ],
)
def test_a_flag_takes_the_place_of_another_in_any_form(argv: str, whole: str) -> None:
    changed = parse(shlex.split(argv)).with_flags({"time_min": 5})
    assert str(changed) == f"python launch/submit.py {whole}"
    assert vars(submit.parse(shlex.split(whole))) == vars(submit.parse(changed.words))


def test_without_anything() -> None:
    assert str(CommandLine()) == "python launch/submit.py"


def test_parts_are_left_out_and_replaced() -> None:
    command = parse(["--nodes", "2", "--dry-run", "a=1", "b=2"])
    assert command.without("--nodes").words == ["--dry-run", "a=1", "b=2"]
    assert command.without("a").words == ["--nodes", "2", "--dry-run", "b=2"]
    assert command.with_settings(["c=3"]).words == ["--nodes", "2", "--dry-run", "c=3"]
    assert replace(command, flags={}).words == ["a=1", "b=2"]


@pytest.mark.parametrize("argv", ["--time 90", "--dry a=1", "--cpus-per=2"])
def test_shortened_flags_are_refused(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They would be taken for others where a command is changed."""
    with pytest.raises(SystemExit) as ended:
        submit.parse(argv.split())
    assert ended.value.code == 2
    assert "unrecognized arguments: --" in capsys.readouterr().err
