"""Refuse a `case_regex` that splits one patient into several cases, and suggest a better one.

Such a patient could be in train and in test, and no figure would show it. The fields of a patient
are recognized, in this order, by: a word for a patient with a number, or a TCGA barcode; a word
for a slide with a number at the start of the names. Then, for names that do not match: all words of
a name but the last; its first word; everything up to its first number; letters before a number. If
DEFAULT_REGEX matches: the first words of a name, if the words that follow in the case look like
slides of a patient (look_like_patients). Separators divide a name into words.
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
    match_all,
    shortened,
    unmatched_text,
)

SEPARATOR = "[-_. ]"
WORD = "[^-_. ]+"
MOST_WORDS = 10  # of a name, that a case may be made of


@dataclass(frozen=True)
class Sign:
    """A sign of a case in a name: a noun such as 'patient', and the number after it."""

    word: str
    number: str = r"\d+"
    begins: bool = False
    """Whether it counts only at the start of a name, since elsewhere it may mean anything."""

    @property
    def pattern(self) -> str:
        """Regular expression that finds it in any letter case; group 1 ends before the number."""
        boundary = "^" if self.begins else "" if len(self.word) > 5 else "(?<![a-z])"
        return rf"(?i:{boundary}({self.word}{SEPARATOR}?){self.number}(?![a-z0-9]))"


PATIENTS = (
    Sign("TCGA", rf"[A-Za-z0-9]{{2}}{SEPARATOR}[A-Za-z0-9]{{4}}"),  # as in TCGA-A2-0010-01Z-00-DX1
    *map(Sign, ("patient", "participant", "subject", "donor", "animal", "mouse")),
    *map(Sign, ("subj", "case", "pat", "sub")),
    *(Sign(letters, begins=True) for letters in ("pt", "p")),  # elsewhere: a point, or a page
)
SLIDES = tuple(
    Sign(word, begins=True) for word in ("slide", "specimen", "sample", "biopsy", "block", "wsi")
)
ALL_BUT_THE_LAST_WORD = rf"(?P<case>.+){SEPARATOR}{WORD}"
SAME_AS_DEFAULT = r"(?P<case>.+)[-]\d+"  # but typed by the user, so that it counts as deliberate
THE_FIRST_WORD = rf"(?P<case>{WORD}).*"
UP_TO_THE_FIRST_NUMBER = r"(?P<case>\D*\d+).*"
LETTERS = r"(?P<case>[^\W\d_]+)\d*"
UP_TO_A_LAST_LETTER = r"(?P<case>.*?\d+)(?:[A-Za-z]\d*)?-\d+"  # 1001 in 1001A-1 and in 1001B2-1

MONTH, DAY = "(?:0[1-9]|1[0-2])", "(?:0[1-9]|[12][0-9]|3[01])"
YEAR = "(?:19|20)[0-9]{2}"
DATE = (
    rf"(?<![0-9])(?:{YEAR}{SEPARATOR}?{MONTH}{SEPARATOR}?{DAY}"
    rf"|{DAY}{SEPARATOR}{MONTH}{SEPARATOR}{YEAR})(?![0-9])"
)
COLLECTION = (  # a word for a group of many patients
    rf"(?i:[a-z]*{YEAR}|(?:batch|center|centre|cohort|group|plate|series|set|site|study|tma)[0-9]*)"
)


def check_cases(names: Sequence[str], case_regex: str) -> None:
    """Raise UsageError if `case_regex` matches no name, or splits what looks like one case.

    The message suggests a better expression.
    """
    if case_regex == EACH or not names:
        return
    matched = match_all(names, case_regex)
    if case_regex != DEFAULT_REGEX and not any(matched.values()):
        raise UsageError(matches_none(names, case_regex))
    now = {name: case or name for name, case in matched.items()}
    unmatched = {name for name in names if not matched[name]}
    better = better_regexes(now, unmatched, is_default=case_regex == DEFAULT_REGEX)
    if not better:
        return
    first, other = apart(cases_of(names, better[0]), now)[:2]
    reason = unmatched_text(names, case_regex) or f"case_regex={case_regex} separates them"
    listed = "".join(f"\n  {typed(regex)}   {in_cases(cases_of(names, regex))}" for regex in better)
    as_it_is = f"if each field is indeed a patient of its own, give case_regex={EACH}"
    if not unmatched and len(set(now.values())) < len(names):
        as_it_is = f"to keep the cases as they are, give {typed(SAME_AS_DEFAULT)}"
    raise UsageError(
        f"one patient could be in train and in test: {first} and {other} would be two cases,"
        f" because {reason}. Give{' one of these' if len(better) > 1 else ''}:{listed}\n"
        f"or a case_regex of your own that matches every name; {as_it_is}"
    )


def matches_none(names: Sequence[str], case_regex: str) -> str:
    """Say that a `case_regex` matches no name, and suggest one that does."""
    text = (
        f"case_regex={case_regex}: matches none of {len(names)} names, such as {names[0]}; it must"
        " match the whole name without its ending, as"
    )
    whole = f"(?:{case_regex})" if "|" in case_regex else case_regex
    for wider in (f"{whole}.*", f".*?{whole}", f".*?{whole}.*"):
        try:
            check_regex(wider)
        except ValueError:  # it begins with flags, which are allowed nowhere else
            continue
        if cases := cases_of(names, wider):
            return f"{text} {typed(wider)} does ({in_cases(cases)})"
    return rf"{text} '(?P<case>patient\d+).*' matches patient10_roi03"


def typed(case_regex: str) -> str:
    """Quote a setting for the shell."""
    return shlex.quote(f"case_regex={case_regex}")


def in_cases(cases: Mapping[str, str]) -> str:
    """Return '2 cases: patient10, patient11'."""
    different = list(dict.fromkeys(cases.values()))
    return f"{counted(len(different), 'case')}: {shortened(different)}"


def cases_of(names: Sequence[str], case_regex: str) -> dict[str, str]:
    """Return name -> case; {} if a name does not match, or the expression is empty or too slow."""
    try:
        matched = match_all(names, case_regex) if case_regex else {}
    except UsageError:
        return {}
    return {name: case for name, case in matched.items() if case} if all(matched.values()) else {}


def apart(cases: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return names that `cases` puts into one case and `now` into several.

    They follow each other case by case, one name for each case of `now`.
    """
    present: dict[str, dict[str, str]] = defaultdict(dict)
    for name, case in cases.items():
        present[case].setdefault(now[name], name)
    return [name for firsts in present.values() if len(firsts) > 1 for name in firsts.values()]


def better_regexes(now: Mapping[str, str], unmatched: set[str], is_default: bool) -> list[str]:
    """Suggest expressions that join fields which `now` has in several cases; the likeliest first.

    Returns more than one only if they go by the position in a name, and group differently. `now`:
    name -> case; `unmatched`: the names that do not match. Names that the user's own expression
    matches keep their cases.
    """
    names = [*now]

    def groups(cases: Mapping[str, str], with_matched: bool) -> bool:
        joined = apart(cases, now)
        is_new = any(with_matched or name in unmatched for name in joined)
        return len(set(cases.values())) > 1 and is_new

    for sign in PATIENTS:
        if cases := cases_of(names, regex := by_sign(names, sign)):
            if not apart(cases, now):
                return []  # as far as one can see, the cases are patients
            if groups(cases, is_default):
                return [regex]
    for sign in SLIDES:
        if groups(cases_of(names, regex := by_sign(names, sign)), is_default):
            return [regex]
    found: list[tuple[str, dict[str, str]]] = []
    for regex in by_position(names):
        cases = cases_of(names, regex)
        if not groups(cases, False) or not agrees_with_patients(cases):
            continue  # also if a name does not match
        if all(apart(cases, before) or apart(before, cases) for _, before in found):
            found.append((regex, cases))
    if found or not is_default:
        return [regex for regex, _ in found]
    for regex in by_lead(now):
        cases = cases_of(names, regex)
        if groups(cases, True) and agrees_with_patients(cases) and look_like_patients(cases, now):
            return [regex]
    return []


def by_position(names: Sequence[str]) -> Iterator[str]:
    """Yield expressions that go by the position in a name; the second kind is for mixed names."""
    yield ALL_BUT_THE_LAST_WORD
    for sign in PATIENTS:
        some = [name for name in names if re.match(sign.pattern, name)]
        if sign_of_some := re.fullmatch(r"\(\?P<case>(.*)\)\.\*", by_sign(some, sign)):
            yield rf"(?P<case>{sign_of_some[1]}|.+(?=-\d+$)|.+).*"
    yield THE_FIRST_WORD
    yield UP_TO_THE_FIRST_NUMBER
    yield LETTERS


def by_lead(now: Mapping[str, str]) -> Iterator[str]:
    """Yield expressions that take fewer words of a name than DEFAULT_REGEX does; fewest first.

    Of names with very many words only the first ones are tried, since each try takes time.
    """
    counts = [len(re.findall(WORD, case)) for case in now.values()]
    for count in range(1, min(max(counts), MOST_WORDS)):
        lead = WORD if count == 1 else rf"(?:{WORD}{SEPARATOR}+){{{count - 1}}}{WORD}"
        if count > min(counts):  # names with fewer words keep the case of DEFAULT_REGEX
            lead = rf"{lead}(?={SEPARATOR}.*-\d+$)|.+(?=-\d+$)|.+"
        yield rf"(?P<case>{lead}).*"
    yield UP_TO_A_LAST_LETTER


def look_like_patients(cases: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Return whether `cases` look like patients, and the words that follow them like their slides.

    Each case of `now` begins with one of `cases`. Slides have shorter numbers than patients, or
    letters, and all patients have the same few slides. A word that many patients have in common,
    such as a year or a site, is followed by a longer number: the patient, one of many. A date is
    never cut.
    """
    pairs: set[tuple[str, str]] = set()
    dated = False
    for name, lead in cases.items():
        dates = [match.span() for match in re.finditer(DATE, name)]
        if any(start < len(lead) <= end for start, end in dates):
            return False
        if following := re.search(WORD, now[name][len(lead) :]):
            pairs.add((lead, following[0]))
            dated |= any(start == len(lead) + following.start() for start, _ in dates)
    leads, slides = {lead for lead, _ in pairs}, {slide for _, slide in pairs}
    if len(pairs) == len(leads) or all(is_patient(slide) for slide in slides):
        return False
    last = [re.findall(WORD, lead)[-1] for lead in leads]
    more = most_digits(last) - most_digits(slides)
    if dated and most_digits(last):
        return True
    if not more or all(re.fullmatch(COLLECTION, word) for word in last):
        return len(leads) >= len(slides)
    return more > 0 or len(leads) > len(slides)


def most_digits(words: Iterable[str]) -> int:
    """Return the largest number of digits in a word."""
    return max(sum(letter.isdigit() for letter in word) for word in words)


def is_patient(word: str) -> bool:
    """Return whether a word of a name is a noun for a patient with a number."""
    return any(re.match(sign.pattern, word) for sign in PATIENTS)


def by_sign(names: Sequence[str], sign: Sign) -> str:
    """Return an expression for a sign that all names have; '' if one does not have it."""
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
    """Return whether each patient named in some of the names is exactly one case."""
    pairs = set()
    for name, case in cases.items():
        found = next((m for sign in PATIENTS if (m := re.search(sign.pattern, name))), None)
        if found:
            pairs.add((found[0].lower(), case))
    return len(pairs) == len({patient for patient, _ in pairs}) == len({case for _, case in pairs})
