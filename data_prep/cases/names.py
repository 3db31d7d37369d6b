"""How a file name tells its case (patient).

`case_regex` is a regular expression with a group 'case' that matches the whole name without its
ending, or the word `each`.
"""

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from common.command_line import UsageError, printable

DEFAULT_REGEX = r"(?P<case>.+)-\d+"
EACH = "each"  # in place of a regular expression: every field is a case of its own
MATCH_LIMIT_S = 2.0  # of computing, for one name; a good expression takes microseconds
MOST_LISTED = 20


def check_regex(case_regex: str) -> None:
    """Refuse what is no `case_regex`. Raises ValueError."""
    if case_regex == EACH:
        return
    try:
        named = "case" in re.compile(case_regex).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"case_regex={case_regex}: {error}") from None
    if not named:
        raise ValueError(f"case_regex={case_regex}: needs a group (?P<case>...), or say {EACH}")


def case_of(name: str, case_regex: str) -> str:
    """The case a field belongs to; a name that tells none is a case of its own."""
    return told_case(name, case_regex) or name


def told_case(name: str, case_regex: str) -> str | None:
    """The case that a field's name tells, or None. Raises UsageError as time_limit()."""
    if case_regex == EACH:
        return name
    with time_limit(name, case_regex):
        match = re.fullmatch(case_regex, name)
    return (match["case"] or None) if match else None


@contextmanager
def time_limit(name: str, case_regex: str) -> Iterator[None]:
    """Raise UsageError where matching a name computes for longer than MATCH_LIMIT_S.

    Signals reach the main thread only; in others there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise UsageError(
            f"case_regex={case_regex}: takes more than {MATCH_LIMIT_S:g} s to match {name}; write"
            " it without repeats of repeats, such as (a+)+"
        )

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, MATCH_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def unmatched(names: Sequence[str], case_regex: str) -> list[str]:
    """The names that tell no case."""
    return [name for name in names if told_case(name, case_regex) is None]


def unmatched_text(names: Sequence[str], case_regex: str) -> str:
    """How many names tell no case, and which: '2 of 9 names do not match case_regex (a, b)'; ''
    where all do."""
    if not (wrong := unmatched(names, case_regex)):
        return ""
    listed = ", ".join(map(printable, wrong[:2])) + (", ..." if len(wrong) > 2 else "")
    return f"{len(wrong)} of {len(names)} names do not match case_regex ({listed})"


def shortened(cases: Sequence[str]) -> str:
    """A list of cases; of a long one the first, and how many more there are."""
    if len(cases) <= MOST_LISTED:
        return ", ".join(map(printable, cases))
    first = MOST_LISTED // 2
    return f"{', '.join(map(printable, cases[:first]))} and {len(cases) - first} more"
