"""Commands: exit codes, names in messages."""

import errno
import sys
from collections.abc import Callable

import pytest

from common import command_line
from common.command_line import UsageError, UserError


@pytest.mark.parametrize("argument", ["-h", "--help", "help"])
def test_it_is_asked_for_in_three_ways(argument: str) -> None:
    assert command_line.wants_help(["run=r", argument])
    assert not command_line.wants_help(["run=help"])


class TestRun:
    @pytest.mark.parametrize(
        ("raised", "code", "message"),
        [
            (UserError("mend this"), 1, "error: mend this\n"),
            (UsageError("no such key"), 2, "error: no such key\n"),
            (UserError("a:\n  \x1b]0;x\x07"), 1, "error: a:\n  \\x1b]0;x\\x07\n"),
            (KeyboardInterrupt(), 130, "interrupted; to go on, run the same command again\n"),
            (BrokenPipeError(errno.EPIPE, "gone"), 1, ""),
            (PermissionError(errno.EACCES, "Denied", "a/b"), 1, "error: a/b: Denied\n"),
            (
                OSError(errno.EMFILE, "Too many open files"),
                1,
                "error: I/O: Too many open files; raise the limit of open files, as in"
                " `ulimit -n 1024`\n",
            ),
            (
                OSError(errno.ENOSPC, "No space left"),
                1,
                "error: I/O: No space left; make room on the disk of the output, and run"
                " the same command again\n",
            ),
        ],
    )
    def test_what_a_user_can_mend_is_a_message_and_a_code(
        self, cli: Callable, raised: BaseException, code: int, message: str
    ) -> None:
        def main(argv: list[str]) -> int:
            raise raised

        assert cli(main) == (code, "", message)

    def test_a_mistake_of_ours_keeps_its_traceback(self) -> None:
        def main(argv: list[str]) -> int:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            command_line.run(main, [])

    @pytest.mark.parametrize("code", [0, 75])
    def test_the_code_of_main_is_the_exit_code(self, cli: Callable, code: int) -> None:
        assert cli(lambda argv: code) == (code, "", "")

    def test_the_arguments_are_the_shells(
        self, cli: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["program", "a=1", "b=2"])
        seen = []
        with pytest.raises(SystemExit):
            command_line.run(lambda argv: seen.extend(argv) or 0)
        assert seen == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 fields"), (1, "1 field"), (2, "2 fields"), (11, "11 fields")]
)
def test_one_of_a_thing_is_not_many(number: int, words: str) -> None:
    assert command_line.counted(number, "field") == words


def test_ten_names_are_told_the_rest_counted_and_a_terminal_acts_upon_none() -> None:
    told = command_line.named([str(number) for number in range(12)])
    assert told == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert command_line.named(["Case_1", "é"]) == "Case_1, é"
    assert command_line.named(["\x1b[2J"]) == r"'\x1b[2J'"
