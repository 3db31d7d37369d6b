"""Refuse cases whose names differ only in how they are written: Case_1, case 01, CASE-1.

They are most likely one patient, who could then be in train and in test.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from common.command_line import UsageError, counted, printable
from data_prep.cases.names import EACH, find_cases
from data_prep.cases.suggestions import PATIENTS, SEPARATOR, SLIDES, cases_of, in_cases, typed

MOST_LISTED = 5


def check_similar(names: Sequence[str], case_regex: str) -> None:
    """Raise UsageError for cases that differ only in how they are written.

    The message shows an expression that joins them, if there is one.
    """
    cases = find_cases(names, case_regex)
    groups = [] if case_regex == EACH else similar_cases(cases.values())
    if not groups:
        return
    listed = "; ".join(" and ".join(map(printable, group)) for group in groups[:MOST_LISTED])
    more = f" (and {len(groups) - MOST_LISTED} more such)" if len(groups) > MOST_LISTED else ""
    joining = next(joining_regexes(cases), "")
    shown = ""
    if joining:
        shown = f", or give\n  {typed(joining)}   {in_cases(cases_of(names, joining))}\n"
    raise UsageError(
        f"one patient could be in train and in test: {listed}{more} would be"
        f" {counted(sum(map(len, groups)), 'case')}, though their names differ only in letter case,"
        " blanks and other separators, leading zeros or Unicode form. If they are one patient,"
        f" rename the files{shown or '; '}if they are different patients, give similar_cases=keep"
    )


def similar_cases(cases: Iterable[str]) -> list[list[str]]:
    """Return the groups of cases that differ only in how they are written."""
    groups: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for case in cases:
        groups[essence(case)][case] = None
    return [[*group] for group in groups.values() if len(group) > 1]


def essence(case: str) -> tuple[str, ...]:
    """Return a case's words, numbers and signs without letter case, separators and zeros.

    Characters that nobody sees are left out, too.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", case).casefold())
    seen = "".join(char for char in plain if unicodedata.category(char) != "Cf")
    signs = (char if unicodedata.category(char) != "Pd" else "-" for char in seen)
    found = re.findall(r"\d+|[^\W\d_]+|[^-_.\s]", "".join(signs))
    return tuple(str(int(piece)) if piece.isdecimal() else piece for piece in found)


def joining_regexes(cases: Mapping[str, str]) -> Iterator[str]:
    """Yield expressions whose cases are those of `cases`, name -> case, with similar ones joined.

    The number after a word is the case.
    """
    names, wanted = [*cases], {name: essence(case) for name, case in cases.items()}
    first = re.match(r"[^\W\d_]+", names[0])
    words = [("", re.escape(first[0]), r"\d+")] if first else []
    words += [(".*?", sign.word, sign.number) for sign in (*PATIENTS, *SLIDES)]
    for before, word, number in words:
        regex = rf"{before}(?i:{word}){SEPARATOR}*0*(?P<case>{number}).*"
        found = cases_of(names, regex)
        pairs = {(found[name], wanted[name]) for name in names} if found else set()
        if pairs and len(pairs) == len(set(found.values())) == len(set(wanted.values())):
            yield regex
