"""Reading BreCaHAD's annotations: every spelling, every mistake."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from common.command_line import UsageError
from data_prep.annotations import brecahad
from data_prep.annotations.findings import Findings
from data_prep.annotations.reader import Rules
from data_prep.config import PrepConfig
from data_prep.images.tiles import whole
from data_prep.raw import BadInputError
from tests.points import as_lists, as_points

READER = brecahad.BreCaHADReader()
POINT = {"x": 0.25, "y": 0.75}


def parse(content: object) -> brecahad.Listed:
    return brecahad.parse(json.dumps(content).encode())


class TestParse:
    def test_every_class_with_its_points(self) -> None:
        content = {name: [] for name in brecahad.CLASSES} | {"tumor": [POINT, {"x": 0, "y": 1}]}
        expected = {name: [] for name in brecahad.CLASSES}
        assert as_lists(parse(content).fractions) == expected | {
            "tumor": [(0.25, 0.75), (0.0, 1.0)]
        }

    @pytest.mark.parametrize(
        ("official", "usual"), [("tubule", "lumen"), ("non_tubule", "non_lumen")]
    )
    def test_both_spellings_name_one_class(self, official: str, usual: str) -> None:
        for name in (official, usual):
            assert as_lists(parse({name: [POINT]}).fractions) == {usual: [(0.25, 0.75)]}

    def test_the_official_files(self, official_json: list[Path]) -> None:
        for path in official_json:
            plain = json.loads(path.read_text())
            points = brecahad.parse(path.read_bytes()).fractions
            assert set(points) == set(brecahad.CLASSES)
            assert as_lists(points) == {
                name: [(entry["x"], entry["y"]) for entry in entries]
                for name, entries in plain.items()
            }

    def test_the_sample(self, real_data: Path) -> None:
        fields, bad = brecahad.BreCaHADReader().find_fields(real_data, PrepConfig().case_regex)
        assert bad == []
        assert len(fields) == 16
        assert [field.case for field in fields] == ["Case_1"] + ["Case_10"] * 8 + ["Case_11"] * 7
        tumor = {
            field.name: len(brecahad.parse(field.annotation.read_bytes()).fractions["tumor"])
            for field in fields
        }
        assert tumor["Case_10-07"] == 245  # the two annotations of one picture, as README.md says
        assert tumor["Case_10-08"] == 155

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "invalid JSON"),
            (b'{"tumor": [{"x": 0.5, "y": 0.', "invalid JSON"),
            (b"\xff\xfe\x00", "invalid JSON"),
            (b"[" * 100_000, "invalid JSON"),
            (b"[]", "expected one object, found list"),
            (b'{"tumour": []}', "unknown class 'tumour'; known: mitosis"),
            (b'{"tumor": {"x": 0.5, "y": 0.5}}', "class 'tumor': expected a list"),
            (b'{"tumor": null}', "class 'tumor': expected a list"),
            (b'{"tumor": [[0.5, 0.5]]}', r"tumor\[0\]: expected \{\"x\""),
            (b'{"tumor": [{"x": 0.5}]}', r"tumor\[0\]: expected \{\"x\""),
            (b'{"tumor": [{"x": 0.5, "y": "0.5"}]}', r"tumor\[0\]\.y: expected a number"),
            (b'{"tumor": [{"x": true, "y": 0.5}]}', r"tumor\[0\]\.x: expected a number"),
            (b'{"tumor": [{"x": null, "y": 0.5}]}', r"tumor\[0\]\.x: expected a number"),
            (
                b'{"tumor": [{"x": 0, "y": 0}, {"x": 1.5, "y": 0}]}',
                r"tumor\[1\]\.x = 1\.5: outside",
            ),
            (b'{"tumor": [{"x": 0.5, "y": -0.001}]}', r"tumor\[0\]\.y = -0\.001: outside"),
            (b'{"tumor": [{"x": 680, "y": 512}]}', r"tumor\[0\]\.x = 680: outside \[0, 1\]"),
            (b'{"tumor": [{"x": NaN, "y": 0.5}]}', r"tumor\[0\]\.x = nan: outside"),
            (b'{"tumor": [{"x": 0.5, "y": Infinity}]}', r"tumor\[0\]\.y = inf: outside"),
            (b'{"tumor": [{"x": 1e999, "y": 0.5}]}', r"tumor\[0\]\.x = inf: outside"),
            (
                b'{"tumor": [{"x": 1' + b"0" * 400 + b', "y": 0.5}]}',
                r"tumor\[0\]\.x = 10+: outside",
            ),
            (b'{"tumor": [], "lumen": []}', "annotates nothing"),
            (b"{}", "annotates nothing"),
            (
                b'{"lumen": [{"x": 0, "y": 0}], "tubule": [{"x": 1, "y": 1}]}',
                "class 'lumen' occurs twice",
            ),
            (
                b'{"tumor": [{"x": 0, "y": 0}], "tumor": [{"x": 1, "y": 1}]}',
                "'tumor' occurs twice",
            ),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_a_mistake_is_refused_with_its_place(self, content: bytes, reason: str) -> None:
        with pytest.raises(BadInputError, match=reason):
            brecahad.parse(content)


class TestPixels:
    def test_a_point_is_the_pixel_that_it_lies_in(self) -> None:
        """x goes over the width; 10.9 is cut, not rounded; the far edge is in the last pixel."""
        parsed = parse({"tumor": [{"x": 0.109, "y": 0.199}, {"x": 0, "y": 1}], "lumen": []})
        found = READER.annotation_in(parsed, whole(200, 100), {"tumor": 1})
        assert as_lists(found.points) == {"tumor": [(10, 39), (0, 199)], "lumen": []}

    @pytest.mark.parametrize(("height", "width"), [(49, 98), (1024, 1360), (49, 20_003)])
    def test_a_written_point_is_read_back_as_its_pixel(self, height: int, width: int) -> None:
        """Also on the edge to the pixel before: (x / 49) * 49 may be less than x in floats."""
        x = np.arange(width, dtype=float)
        pixels = {"own name": np.column_stack([x, x % height]), "none": np.zeros((0, 2))}
        for shift in (-0.5, 0, 0.49):
            points = {name: points_N2 + shift for name, points_N2 in pixels.items()}
            written = brecahad.encode_points(points, height, width)
            found = brecahad.decode_points(written, height, width)
            assert list(found) == list(pixels)
            assert all(np.array_equal(found[name], pixels[name]) for name in pixels)

    def test_what_is_written_has_the_form_of_brecahad(self) -> None:
        points = as_points({'a "b" é': [(0, 1.25)], "c": []})
        written = brecahad.encode_points(points, 4, 3)
        (point,) = json.loads(written)['a "b" é']
        assert point == pytest.approx({"x": 0.5 / 3, "y": 1.75 / 4}, abs=1e-6)
        assert json.loads(written)["c"] == []
        assert written.endswith(b"}\n")


class TestClasses:
    def test_a_class_without_a_list_is_refused(self) -> None:
        with pytest.raises(BadInputError, match="has no list for class 'lumen'"):
            READER.annotation_in(parse({"tumor": [POINT]}), whole(10, 10), {"tumor": 1, "lumen": 2})

    def test_asked_for_classes_take_both_spellings(self) -> None:
        assert READER.check_classes(["tubule", "tumor"]) == ["lumen", "tumor"]

    def test_an_unknown_class_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(UsageError, match="unknown 'cancer'; known: mitosis, non_mitosis"):
            READER.check_classes(["cancer"])

    def test_one_class_under_two_spellings_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"classes=\[lumen,tubule\]: a class is named twice"):
            READER.check_classes(["lumen", "tubule"])


class TestPassedOver:
    """One point that cannot be used does not cost the others."""

    def test_points_that_cannot_be_used_are_counted(self) -> None:
        others = [{"x": 0.5}, [0.5, 0.5], {"x": float("nan"), "y": 0}, {"x": "1", "y": 0}, None]
        listed = parse({"tumor": [*others, POINT, others[0]], "lumen": [others[3]]})
        assert as_lists(listed.fractions) == {"tumor": [(0.25, 0.75)], "lumen": []}
        assert READER.findings(listed, whole(10, 10)) == Findings(
            classes={"tumor": 1},
            passed_over={
                'without "x" and "y"': 4,
                "a coordinate is not a position in any image": 1,
                "a coordinate is not a number": 2,
            },
        )

    def test_a_point_that_is_there_twice_counts_once(self) -> None:
        listed = parse({"tumor": [POINT, {"x": 0.5, "y": 0.5}, POINT], "lumen": [POINT]})
        assert as_lists(listed.fractions)["tumor"] == [(0.25, 0.75), (0.5, 0.5)]
        assert READER.findings(listed, whole(10, 10)) == Findings(
            classes={"tumor": 2, "lumen": 1}, duplicates=1
        )

    def test_nothing_here_can_be_said(self) -> None:
        """By empty lists, but by no list at all and by lists of nothing usable it is not."""
        accepting = Rules(empty="accept")
        listed = brecahad.parse(b'{"tumor": [], "lumen": []}', accepting)
        assert as_lists(listed.fractions) == {"tumor": [], "lumen": []}
        for content in (b"{}", b'{"tumor": [null]}'):
            with pytest.raises(BadInputError):
                brecahad.parse(content, accepting)

    def test_the_refusal_of_nothing_names_the_key(self) -> None:
        with pytest.raises(BadInputError, match=r"annotates nothing: .*; empty=accept takes"):
            parse({"tumor": []})

    def test_very_many_keys_take_no_time(self) -> None:
        """1.3 MB: minutes, if each key were looked for among all others."""
        keys = [f'"k{number}": []' for number in range(100_000)]
        started = time.process_time()
        with pytest.raises(BadInputError, match="'k7' occurs twice"):
            brecahad.parse(("{" + ",".join([*keys, keys[7]]) + "}").encode())
        assert time.process_time() - started < 10
