"""Refuse names whose `case_regex` leaves one patient in several cases, and show one that would do.

Such a patient could be in train and in test, and no figure would show it. What its fields have in
common is looked for in this order: a word for a patient with a number, or a TCGA barcode; a word
for a slide with a number, where names begin with it. Then, for names that the expression does not
match: all of a name but its last part; its first part; all up to its first number; letters before
a number. Where DEFAULT_REGEX matches: the first parts of a name, if what is left of the case looks
like slides of a patient (look_like_patients).
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.command_line import UsageError, counted
from data_prep.cases.names import (
    DEFAULT_REGEX,
    EACH,
    check_regex,
    shortened,
    told_case,
    unmatched_text,
)

SEPARATOR = "[-_. ]"
PART = "[^-_. ]+"


@dataclass(frozen=True)
class Sign:
    """What a case is known by in a name: a word and what follows it."""

    word: str
    number: str = r"\d+"
    begins: bool = False
    """Whether only a name that begins with it counts: elsewhere it says little."""

    @property
    def pattern(self) -> str:
        """Finds it as a part of a name, in any letter case; group 1 is all before the number."""
        boundary = "^" if self.begins else "" if len(self.word) > 5 else "(?<![a-z])"
        return rf"(?i:{boundary}({self.word}{SEPARATOR}?){self.number}(?![a-z0-9]))"


PATIENTS = (
    Sign("TCGA", rf"[A-Za-z0-9]{{2}}{SEPARATOR}[A-Za-z0-9]{{4}}"),  # as in TCGA-A2-0010-01Z-00-DX1
    *map(Sign, ("patient", "participant", "subject", "donor", "animal", "mouse")),
    *map(Sign, ("subj", "case", "pat", "sub")),
    *(Sign(letters, begins=True) for letters in ("pt", "p")),  # elsewhere a point, or a page
)
SLIDES = tuple(
    Sign(word, begins=True) for word in ("slide", "specimen", "sample", "biopsy", "block", "wsi")
)
ALL_BUT_THE_LAST_PART = rf"(?P<case>.+){SEPARATOR}{PART}"
DEFAULT_IN_OTHER_WORDS = r"(?P<case>.+)[-]\d+"
THE_FIRST_PART = rf"(?P<case>{PART}).*"
UP_TO_THE_FIRST_NUMBER = r"(?P<case>\D*\d+).*"
LETTERS = r"(?P<case>[^\W\d_]+)\d*"
UP_TO_A_LAST_LETTER = r"(?P<case>.*?\d+)(?:[A-Za-z]\d*)?-\d+"  # 1001 in 1001A-1 and in 1001B2-1

MONTH, DAY = "(?:0[1-9]|1[0-2])", "(?:0[1-9]|[12][0-9]|3[01])"
YEAR = "(?:19|20)[0-9]{2}"
DATE = (
    rf"(?<![0-9])(?:{YEAR}{SEPARATOR}?{MONTH}{SEPARATOR}?{DAY}"
    rf"|{DAY}{SEPARATOR}{MONTH}{SEPARATOR}{YEAR})(?![0-9])"
)
COLLECTION = (  # of many patients
    rf"(?i:[a-z]*{YEAR}|(?:batch|center|centre|cohort|group|plate|series|set|site|study|tma)[0-9]*)"
)


def check_cases(names: Sequence[str], case_regex: str) -> None:
    """Refuse a `case_regex` that matches no name, or leaves apart what looks like one case.

    Raises UsageError with an expression that would do.
    """
    if case_regex == EACH or not names:
        return
    told = {name: told_case(name, case_regex) for name in names}
    if case_regex != DEFAULT_REGEX and not any(told.values()):
        raise UsageError(matches_none(names, case_regex))
    now = {name: case or name for name, case in told.items()}
    wrong = {name for name in names if not told[name]}
    better = better_regexes(now, wrong, is_default=case_regex == DEFAULT_REGEX)
    if not better:
        return
    first, other = apart(cases_of(names, better[0]), now)[:2]
    reason = unmatched_text(names, case_regex) or f"case_regex={case_regex} tells them apart"
    listed = "".join(f"\n  {typed(regex)}   {in_cases(cases_of(names, regex))}" for regex in better)
    as_it_is = f"where each field is indeed a patient of its own, give case_regex={EACH}"
    if not wrong and len(set(now.values())) < len(names):
        as_it_is = f"to keep the cases as they are, give {typed(DEFAULT_IN_OTHER_WORDS)}"
    raise UsageError(
        f"one patient could be in train and in test: {first} and {other} would be two cases,"
        f" because {reason}. Give{' one of these' if len(better) > 1 else ''}:{listed}\n"
        f"or a case_regex of your own that matches every name; {as_it_is}"
    )


def matches_none(names: Sequence[str], case_regex: str) -> str:
    """What is wrong with a `case_regex` that matches no name, and what would do."""
    text = (
        f"case_regex={case_regex}: matches none of {len(names)} names, such as {names[0]}; it must"
        " match the whole name without its ending, as"
    )
    whole = f"(?:{case_regex})" if "|" in case_regex else case_regex
    for wider in (f"{whole}.*", f".*?{whole}", f".*?{whole}.*"):
        try:
            check_regex(wider)
        except ValueError:  # it begins with flags, which can stand nowhere else
            continue
        if cases := cases_of(names, wider):
            return f"{text} {typed(wider)} does ({in_cases(cases)})"
    return rf"{text} '(?P<case>patient\d+).*' matches patient10_roi03"


def typed(case_regex: str) -> str:
    """A setting as a shell takes it."""
    return shlex.quote(f"case_regex={case_regex}")


def in_cases(cases: Mapping[str, str]) -> str:
    """'2 cases: patient10, patient11'."""
    different = list(dict.fromkeys(cases.values()))
    return f"{counted(len(different), 'case')}: {shortened(different)}"


def cases_of(names: Sequence[str], case_regex: str) -> dict[str, str]:
    """Name -> case; nothing where a name tells none, or the expression is empty."""
    told = {name: told_case(name, case_regex) for name in names} if case_regex else {}
    return {name: case for name, case in told.items() if case} if all(told.values()) else {}


def apart(cases: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of one case by `cases` that are in several now, one of each; case by case."""
    present: dict[str, dict[str, str]] = defaultdict(dict)
    for name, case in cases.items():
        present[case].setdefault(now[name], name)
    return [name for firsts in present.values() if len(firsts) > 1 for name in firsts.values()]


def better_regexes(now: Mapping[str, str], wrong: set[str], is_default: bool) -> list[str]:
    """Expressions by which fields share a case that are in several now, the likeliest first; more
    than one where only the place in a name tells, and all differ in what they group.

    `now`: name -> case; `wrong`: the names that tell no case. Names that an expression of the
    user's own matches are left as that says.
    """
    names = [*now]

    def groups(cases: Mapping[str, str], whichever: bool) -> bool:
        joined = apart(cases, now)
        return len(set(cases.values())) > 1 and any(whichever or name in wrong for name in joined)

    for sign in PATIENTS:
        if cases := cases_of(names, regex := by_sign(names, sign)):
            if not apart(cases, now):
                return []  # by all that can be seen the cases are patients
            if groups(cases, is_default):
                return [regex]
    for sign in SLIDES:
        if groups(cases_of(names, regex := by_sign(names, sign)), is_default):
            return [regex]
    found: list[tuple[str, dict[str, str]]] = []
    for regex in by_place(names):
        cases = cases_of(names, regex)
        if not groups(cases, False) or not agrees_with_patients(cases):
            continue  # names that tell no case by it end here too
        if all(apart(cases, before) or apart(before, cases) for _, before in found):
            found.append((regex, cases))
    if found or not is_default:
        return [regex for regex, _ in found]
    for regex in by_lead(now):
        cases = cases_of(names, regex)
        if groups(cases, True) and agrees_with_patients(cases) and look_like_patients(cases, now):
            return [regex]
    return []


def by_place(names: Sequence[str]) -> Iterator[str]:
    """Expressions that go by the place in a name; after the first, those for names of two kinds."""
    yield ALL_BUT_THE_LAST_PART
    for sign in PATIENTS:
        some = [name for name in names if re.match(sign.pattern, name)]
        if sign_of_some := re.fullmatch(r"\(\?P<case>(.*)\)\.\*", by_sign(some, sign)):
            yield rf"(?P<case>{sign_of_some[1]}|.+(?=-\d+$)|.+).*"
    yield THE_FIRST_PART
    yield UP_TO_THE_FIRST_NUMBER
    yield LETTERS


def by_lead(now: Mapping[str, str]) -> Iterator[str]:
    """Expressions that take less of a name than DEFAULT_REGEX does; the least first."""
    counts = [len(re.findall(PART, case)) for case in now.values()]
    for count in range(1, max(counts)):
        lead = PART if count == 1 else rf"(?:{PART}{SEPARATOR}+){{{count - 1}}}{PART}"
        if count > min(counts):  # names of fewer parts are left as DEFAULT_REGEX says
            lead = rf"{lead}(?={SEPARATOR}.*-\d+$)|.+(?=-\d+$)|.+"
        yield rf"(?P<case>{lead}).*"
    yield UP_TO_A_LAST_LETTER


def look_like_patients(cases: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether `cases`, which begin the cases now, look like patients, and the parts that come next
    in the cases now like their slides.

    Slides have shorter numbers than patients, or letters; and the slides of all patients have the
    same few. What many patients share, as a year or a site, has it the other way round: next comes
    a patient, of a longer number, and one of many. A date is never cut.
    """
    pairs: set[tuple[str, str]] = set()
    dated = False
    for name, lead in cases.items():
        dates = [match.span() for match in re.finditer(DATE, name)]
        if any(start < len(lead) <= end for start, end in dates):
            return False
        if following := re.search(PART, now[name][len(lead) :]):
            pairs.add((lead, following[0]))
            dated |= any(start == len(lead) + following.start() for start, _ in dates)
    leads, slides = {lead for lead, _ in pairs}, {slide for _, slide in pairs}
    if len(pairs) == len(leads) or all(is_patient(slide) for slide in slides):
        return False
    last = [re.findall(PART, lead)[-1] for lead in leads]
    more = most_digits(last) - most_digits(slides)
    if dated and most_digits(last):
        return True
    if not more or all(re.fullmatch(COLLECTION, part) for part in last):
        return len(leads) >= len(slides)
    return more > 0 or len(leads) > len(slides)


def most_digits(parts: Iterable[str]) -> int:
    """How many digits the part with the most has."""
    return max(sum(letter.isdigit() for letter in part) for part in parts)


def is_patient(part: str) -> bool:
    """Whether a part of a name is a word for a patient and a number."""
    return any(re.match(sign.pattern, part) for sign in PATIENTS)


def by_sign(names: Sequence[str], sign: Sign) -> str:
    """An expression for a sign that all names have; '' where one has not."""
    found = [match for name in names if (match := re.search(sign.pattern, name))]
    if not found or len(found) < len(names):
        return ""
    lead = "" if all(match.start() == 0 for match in found) else ".*?"
    spellings = {match[1] for match in found}
    if len(spellings) > 1:  # then the number alone is the case
        return rf"{lead}(?i:{sign.word}){SEPARATOR}?0*(?P<case>{sign.number}).*"
    spelled = spellings.pop().replace(".", r"\.")
    return rf"{lead}(?P<case>{spelled}{sign.number}).*"


def agrees_with_patients(cases: Mapping[str, str]) -> bool:
    """Whether each patient that some names give is one case, and of no case with another."""
    pairs = set()
    for name, case in cases.items():
        found = next((m for sign in PATIENTS if (m := re.search(sign.pattern, name))), None)
        if found:
            pairs.add((found[0].lower(), case))
    return len(pairs) == len({patient for patient, _ in pairs}) == len({case for _, case in pairs})
