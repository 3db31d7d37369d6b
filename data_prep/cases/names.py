"""Find the case (patient) in a file name.

`case_regex` is a regular expression with a group 'case' that matches the whole name without its
ending, or the word `each`.
"""

import re
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from common.command_line import UsageError, printable

DEFAULT_REGEX = r"(?P<case>.+)-\d+"
EACH = "each"  # instead of a regular expression: every field is a case of its own
MATCH_LIMIT_S = 2.0  # CPU time to match all names; a good expression takes a microsecond each
MOST_LISTED = 20


def check_regex(case_regex: str) -> None:
    """Raise ValueError for an invalid `case_regex`."""
    if case_regex == EACH:
        return
    try:
        named = "case" in re.compile(case_regex).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"case_regex={case_regex}: {error}") from None
    if not named:
        raise ValueError(f"case_regex={case_regex}: needs a group (?P<case>...), or say {EACH}")


def find_cases(names: Sequence[str], case_regex: str) -> dict[str, str]:
    """Return name -> case; a name that does not match is a case of its own.

    Raises UsageError as match_all().
    """
    return {name: case or name for name, case in match_all(names, case_regex).items()}


def match_all(names: Sequence[str], case_regex: str) -> dict[str, str | None]:
    """Return the case in each field's name, or None.

    Raises UsageError if that takes more CPU time than MATCH_LIMIT_S. Only the main thread has this
    limit, since signals reach no other.
    """
    if case_regex == EACH:
        return {name: name for name in names}
    regex = re.compile(unicodedata.normalize("NFC", case_regex))  # the form that names have
    found: dict[str, str | None] = {}
    name = ""

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise UsageError(
            f"case_regex={case_regex}: takes more than {MATCH_LIMIT_S:g} s to match {name}; write"
            " it without repeats of repeats, such as (a+)+"
        )

    with clock(give_up):
        for name in names:
            match = regex.fullmatch(name)
            found[name] = (match["case"] or None) if match else None
    return found


@contextmanager
def clock(give_up: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `give_up` when this thread, if it is the main one, has used MATCH_LIMIT_S."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, MATCH_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def unmatched_names(names: Sequence[str], case_regex: str) -> list[str]:
    """List the names that do not match."""
    return [name for name, case in match_all(names, case_regex).items() if case is None]


def unmatched_text(names: Sequence[str], case_regex: str) -> str:
    """Return '2 of 9 names do not match case_regex (a, b)'; '' if all match."""
    unmatched = unmatched_names(names, case_regex)
    if not unmatched:
        return ""
    listed = ", ".join(map(printable, unmatched[:2])) + (", ..." if len(unmatched) > 2 else "")
    return f"{len(unmatched)} of {len(names)} names do not match case_regex ({listed})"


def shortened(cases: Sequence[str]) -> str:
    """Join a list of cases; shorten a long one: 'Case_1, Case_2 and 30 more'."""
    if len(cases) <= MOST_LISTED:
        return ", ".join(map(printable, cases))
    first = MOST_LISTED // 2
    return f"{', '.join(map(printable, cases[:first]))} and {len(cases) - first} more"
