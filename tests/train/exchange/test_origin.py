"""Which cases are among those that the weights of an origin have seen."""

import dataclasses

import pytest

from data_prep.cases.names import DEFAULT_REGEX, EACH
from data_prep.dataset.description import Description, Labelling
from model import ModelConfig
from train.config import TrainConfig
from train.exchange.origin import Origin, beginning_in, origins_in, trained_among

ORIGIN = Origin("first", "best", 8, "ab", ["Case_3", "Case_10"], ["Case_4"], DEFAULT_REGEX)


def data(case_regex: str = DEFAULT_REGEX, similar_cases: str = "stop") -> Description:
    labelling = Labelling({"tumor": 255}, 8, 65535, case_regex)
    return Description(labelling, {}, "", {"similar_cases": similar_cases})


@pytest.mark.parametrize(
    ("case", "is_seen"),
    [
        ("Case_3", True),
        ("case-03", True),
        ("CASE 3", True),
        ("Case_10", True),
        ("Case_1", False),
        ("Case_30", False),
        ("Case_4", False),
    ],
)
def test_a_case_is_known_however_it_is_written(case: str, is_seen: bool) -> None:
    assert (case in trained_among([case], data(), [ORIGIN])) == is_seen


def test_cases_that_the_data_set_keeps_apart_are_compared_letter_by_letter() -> None:
    cases = ["Case_3", "case-03"]
    assert [*trained_among(cases, data(similar_cases="keep"), [ORIGIN])] == ["Case_3"]


def test_a_field_is_of_the_case_of_an_origin_that_was_split_otherwise() -> None:
    """case_regex=each makes Case_3-01 a case; in the other set it is a field of Case_3."""
    fields = ["Case_3-01", "Case_4-01", "Case_10-02"]
    assert [*trained_among(fields, data(EACH), [ORIGIN])] == ["Case_3-01", "Case_10-02"]
    each = dataclasses.replace(ORIGIN, train=["Case_3-01"], case_regex=EACH)
    assert [*trained_among(["Case_3", "Case_10"], data(), [each])] == ["Case_3"]


def test_each_case_is_told_with_the_nearest_origin_that_has_seen_it() -> None:
    nearer = dataclasses.replace(ORIGIN, source="second", train=["Case_10"])
    found = trained_among(["Case_3", "Case_10"], data(), [nearer, ORIGIN])
    assert {case: origin.source for case, origin in found.items()} == {
        "Case_10": "second",
        "Case_3": "first",
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": "Case_3"}, "train: expected a valid list"),
        ({"case_regex": "("}, "case_regex"),
        ({"source": "a\x1b[2J"}, "control character"),
        ({"step": "8"}, "step: expected a valid integer"),
    ],
)
def test_what_is_no_origin_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        origins_in([dataclasses.asdict(ORIGIN) | changes])


def test_weights_of_an_encoder_are_recorded_where_settings_name_some_and_only_there() -> None:
    """A model of init= may have an encoder that began with some, or none."""
    named = TrainConfig(model=ModelConfig(name="smp", weights="imagenet"))
    source = {"encoder": "a", "source": "b", "revision": "", "sha256": "c", "licence": "mit"}
    origin = dataclasses.asdict(ORIGIN)
    for config, origins, encoder in (
        (named, [], source),
        (TrainConfig(), [], None),
        (TrainConfig(init="a"), [origin], source),
        (TrainConfig(init="a"), [origin], None),
    ):
        _, found = beginning_in(config, origins, encoder)
        assert (dataclasses.asdict(found) if found else None) == encoder
    for config, encoder in ((named, None), (TrainConfig(), source)):
        with pytest.raises(ValueError, match=r"encoder: .* of a run with model\.weights="):
            beginning_in(config, [], encoder)
    with pytest.raises(ValueError, match="control character"):
        beginning_in(named, [], source | {"licence": "a\x1b[2J"})
