"""The numbers of stains as text, in settings and data sets of others."""

import pytest

from data_prep.images.stains import PUBLISHED, Stains, notes_on_stains, parse

TEXT = "hematoxylin 0.5626 0.7201 0.4062 eosin 0.2159 0.8012 0.5581 maxima 1.9705 1.0308"


def test_what_was_written_is_read_back() -> None:
    assert PUBLISHED.text() == TEXT
    assert parse(TEXT) == PUBLISHED
    found = Stains((0.6, 0.8, 0.0), (0.0, 0.6, 0.8), (1 / 3, 1e-3))
    assert parse(found.text()) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected 'hematoxylin 0.5626"),
        (TEXT.replace("eosin", "eosine"), "expected 'hematoxylin"),
        (TEXT.removesuffix(" 1.0308"), "expected 'hematoxylin"),
        (TEXT + " 1", "nothing after the maxima, found '1'"),
        (TEXT + " 1" * 10**5, "nothing after the maxima"),
        (TEXT.replace("0.5626", "half"), "could not convert"),
        (TEXT.replace("0.5626", "0.6626"), "of length 1"),
        (TEXT.replace("0.5626", "-0.5626"), "from 0 to 1"),
        (TEXT.replace("0.2159", "nan"), "eosin nan .* of length 1"),
        (TEXT.replace("0.2159", "inf"), "eosin inf .* of length 1"),
        (TEXT.replace("1.9705", "nan"), "maxima nan 1.0308: expected above 0"),
        (TEXT.replace("1.9705", "0"), "maxima 0.0 1.0308: expected above 0, at most 10"),
        (TEXT.replace("1.0308", "1e9"), "at most 10"),
        (TEXT.replace("0.5626 0.7201 0.4062", "0.2159 0.8012 0.5581"), "of one colour"),
    ],
)
def test_what_are_no_stains_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse(text)
    assert len(str(caught.value)) < 200


def test_images_that_keep_their_colours_are_named() -> None:
    assert notes_on_stains({}) == notes_on_stains({"a.tif": "", "b.tif": ""}) == []
    assert notes_on_stains({"a.tif": "", "b.tif": "too little tissue"}) == [
        "1 of 2 images keeps its colours, since its stains cannot be estimated: b.tif (too little"
        " tissue)"
    ]
