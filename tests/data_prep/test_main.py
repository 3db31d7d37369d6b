"""`python -m data_prep`: help, exit codes, messages of one line, and what a good run says."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common import workers
from common.command_line import UserError
from common.help_text import describe_fields
from data_prep import __main__ as data_prep_main
from data_prep import fetch, prepare, synthetic
from data_prep.__main__ import main
from data_prep.config import PrepConfig
from data_prep.field import prepare_field
from data_prep.tools.config import SyntheticConfig

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("warm_workers")]

ROOT = Path(__file__).parents[2]
SPLIT = ["split.val_cases=[2]", "split.test_cases=[Case_3]"]
COMMANDS = [
    (main, PrepConfig),
    (synthetic.main, SyntheticConfig),
    (fetch.main, fetch.FetchConfig),
]


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a configuration as it is without any argument."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def typed(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, list):
        return "[" + ",".join(value) + "]"
    return {"???": "...", "True": "true", "False": "false"}.get(str(value), str(value))


class TestWorkersGetReady:
    """They are loaded while the run itself is, where nothing stands yet."""

    @pytest.fixture
    def order(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        order: list[str] = []

        def noted(what: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *given: (order.append(what.__name__), what(*given))[1]

        def get_ready(module: str) -> None:
            assert module == prepare_field.__module__
            workers.get_ready(module)

        monkeypatch.setattr(data_prep_main, "get_ready", noted(get_ready))
        monkeypatch.setattr(prepare, "prepare", noted(prepare.prepare))
        return order

    def test_before_a_new_set_only(
        self, raw_folder: Callable[..., Path], tmp_path: Path, order: list[str]
    ) -> None:
        argv = [f"raw={raw_folder()}", f"out={tmp_path / 'out'}", "copies=1", *SPLIT]
        main(argv)
        assert order == ["get_ready", "prepare"]
        main(argv)
        assert order[2:] == ["prepare"]

    def test_not_for_a_raw_folder_that_is_none(self, tmp_path: Path, order: list[str]) -> None:
        with pytest.raises(UserError, match="no such folder"):
            main([f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}"])
        assert order == []


class TestHelp:
    @pytest.mark.parametrize(("command", "config"), COMMANDS)
    def test_it_shows_every_key_with_the_default_it_really_has(
        self, cli: Callable, command: Callable, config: type
    ) -> None:
        code, out, err = cli(command, "--help")
        assert (code, err) == (0, "")
        shown = [line.strip() for line in out.splitlines() if re.match(r"  [a-z_.0-9]+=", line)]
        assert shown == [f"{key}={typed(value)}" for key, value in leaves(config())]

    @pytest.mark.parametrize(("command", "config"), COMMANDS)
    def test_every_key_has_a_text_and_a_type(
        self, cli: Callable, command: Callable, config: type
    ) -> None:
        documented = list(describe_fields(config))
        assert [key for key, *_ in documented] == [key for key, _ in leaves(config())]
        shown = " ".join(cli(command, "help").out.split())
        for key, _, kind, text in documented:
            assert len(text.split()) >= 3, f"{key} is not explained"
            assert f"{text} [{kind}]" in shown, key

    @pytest.mark.parametrize(("command", "config"), COMMANDS)
    def test_a_key_with_a_size_names_its_unit(
        self, cli: Callable, command: Callable, config: type
    ) -> None:
        units = {"_px": "px|pixels", "_deg": "degrees"}
        for key, _, _, text in describe_fields(config):
            unit = next((units[end] for end in units if key.endswith(end)), "")
            assert re.search(unit, text), f"{key} does not say its unit"

    def test_it_starts_with_the_command_line(self, cli: Callable) -> None:
        assert "python -m data_prep [raw=data/BreCaHAD out=data/prepared " in cli(main, "-h").out


class TestUsageErrors:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["raw=nowhere"], ["raw=nowhere: no such folder"]),
            (["copes=3"], ["copes=3", "Did you mean", "'copies'"]),
            (["copies=0"], ["copies=0", "at least 1"]),
            (["classes=tumor"], ["classes=[tumor]"]),
            (["classes=[]"], ["classes=[]", "at least one class"]),
            (["classes=[tumour]"], ["unknown 'tumour'", "mitosis, non_mitosis"]),
            (["classes=[tumor,tumor]"], ["named twice"]),
            (["classes=[lumen,tubule]"], ["twice"]),
            (["labels=colours"], ["labels=colours", "binary", "per_class"]),
            (["format=bmp"], ["format=bmp", "jpg", "png"]),
            (["on_error=ignore"], ["on_error=ignore", "stop", "skip"]),
            (["jpg_quality=101"], ["jpg_quality=101", "1 to 100"]),
            (["uint16_white=0"], ["uint16_white=0", "at least 1"]),
            (["workers=0"], ["workers=0", "at least 1"]),
            (["radius_px=0"], ["radius_px=0", "at least 1"]),
            (["share=9/8"], ["share=9/8", "k/n with k from 1 to n"]),
            (["share=0/8"], ["share=0/8", "as in 3/8"]),
            (["share=half"], ["share=half", "as in 3/8"]),
            (["tile_px=32767"], ["tile_px=32767", "at most 32766"]),
            (['classes=["a\\tb"]'], ["classes=", "unprintable characters"]),
            ([f"classes=[{','.join(f'c{n}' for n in range(256))}]"], ["256, at most 253"]),
            (["augment.elastic.rms_px=21"], ["rms_px=21", "twice sigma_px=10"]),
            (["tile_overlap_px=32"], ["tile_overlap_px=32", "tile_px=0", "tile_px=1024"]),
            (["tile_px=64", "tile_overlap_px=64"], ["tile_overlap_px=64", "below tile_px"]),
            (["case_regex=("], ["case_regex=("]),
            (["case_regex=.*"], ["case_regex=.*", "(?P<case>...)"]),
            (["split.test_cases=[7]"], ["no case '7'", "Case_1, Case_2, Case_3"]),
            (["split.folds=9", "split.val_cases=[]", "split.test_cases=[]"], ["only 3 cases"]),
            (["raw={raw}/nowhere"], ["raw=", "nowhere: no such folder"]),
            (
                ["raw={raw}/groundTruth"],
                ["no images found; it holds 4 .json", "did you mean raw={raw}?"],
            ),
            (
                ["raw={raw}/images"],
                ["4 images in this folder, but no annotation (.json)", "did you mean raw={raw}?"],
            ),
            (["out={raw}"], ["is the raw folder"]),
            (["out={raw}/images"], ["holds something that is not a prepared data set"]),
            (["out={raw}/images/Case_1-01.tif"], ["Case_1-01.tif: is a file; name a folder"]),
            (
                ["out={raw}/images/Case_1-01.tif/a"],
                ["out={raw}/images/Case_1-01.tif/a: cannot be made: Not a directory; name a"],
            ),
        ],
        ids=lambda value: " ".join(value)[:40] or "none",
    )
    def test_one_line_exit_code_2_and_nothing_written(
        self,
        cli: Callable,
        raw_folder: Callable[..., Path],
        tmp_path: Path,
        arguments: list[str],
        words: list[str],
    ) -> None:
        raw = raw_folder()
        before = sorted(tmp_path.rglob("*"))
        given = [argument.format(raw=raw) for argument in arguments]
        defaults = [f"raw={raw}", f"out={tmp_path / 'out'}", *SPLIT] if given else []
        if given == [f"raw={raw}"]:
            defaults = []
        code, out, err = cli(main, *defaults, *given)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert all(word.format(raw=raw) in err for word in words), err
        assert sorted(tmp_path.rglob("*")) == before


NAMES = [f"patient{patient}_roi{roi:02}" for patient in (10, 11, 12) for roi in (3, 4)]


def renamed(raw: Path, out: Path, annotations: str) -> Path:
    """BreCaHAD's six fields, under the usual names of others, in any format."""
    (out / "images").mkdir(parents=True)
    (out / "groundTruth").mkdir()
    for image, name in zip(sorted((raw / "images").iterdir()), NAMES, strict=True):
        shutil.copy(image, out / f"images/{name}.tif")
        mask_HW = np.zeros((120, 160), np.uint8)
        mask_HW[20:40, 20:40] = 255
        truth = out / "groundTruth"
        if annotations == "masks":
            Image.fromarray(mask_HW).save(truth / f"{name}.png")
        elif annotations == "geojson":
            (truth / f"{name}.geojson").write_text(json.dumps([AREA]))
        elif annotations == "brecahad":
            shutil.copy(raw / f"groundTruth/{image.stem}.json", truth / f"{name}.json")
    if annotations == "csv":
        rows = "".join(f"{name},10,20,tumor\n" for name in NAMES)
        (out / "groundTruth/points.csv").write_text("file,x,y,class\n" + rows)
    return out


AREA = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [[[9, 9], [40, 9], [40, 40], [9, 9]]]},
    "properties": {"classification": {"name": "tumor"}},
}


class TestCasesOfNames:
    """patient10_roi03 does not match the default: one patient would be in train and in test."""

    @pytest.mark.parametrize(
        ("annotations", "share"),
        [("brecahad", ""), ("geojson", "1/2"), ("csv", ""), ("masks", "1/2")],
    )
    def test_names_that_look_alike_stop_before_anything_is_written(
        self,
        cli: Callable,
        raw_folder: Callable[..., Path],
        tmp_path: Path,
        annotations: str,
        share: str,
    ) -> None:
        raw = renamed(raw_folder({"1": 6}), tmp_path / "own", annotations)
        given = [f"raw={raw}", f"out={tmp_path / 'out'}", f"annotations={annotations}", "copies=1"]
        code, said, err = cli(main, *given, f"share={share}")
        assert (code, said) == (2, "")
        assert "6 of 6 names do not match case_regex (patient10_roi03, patient10_roi04, ...)" in err
        assert (
            "'case_regex=(?P<case>patient\\d+).*'   3 cases: patient10, patient11, patient12" in err
        )
        assert "case_regex=each" in err
        assert not (tmp_path / "out").exists()

    def test_what_is_shown_is_taken_as_typed_and_keeps_patients_together(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw, out = renamed(raw_folder({"1": 6}), tmp_path / "own", "masks"), tmp_path / "out"
        given = [f"raw={raw}", f"out={out}", "annotations=masks", "copies=1"]
        shown = re.search(r"^  (\S.*?)   3 cases", cli(main, *given).err, re.MULTILINE)
        assert shown
        code, said, err = cli(main, *given, *shlex.split(shown[1]), "split.test_cases=[patient11]")
        assert (code, err) == (0, "")
        assert "test  2 samples, 2 fields, 1 case: patient11\n" in said
        assert "do not match" not in said
        about = json.loads((out / "dataset.json").read_text())
        assert sorted(map(len, about["split"].values())) == [1, 1, 1]

    def test_each_field_can_be_a_case_of_its_own(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw, out = renamed(raw_folder({"1": 6}), tmp_path / "own", "masks"), tmp_path / "out"
        given = [f"raw={raw}", f"out={out}", "annotations=masks", "copies=1", "case_regex=each"]
        code, said, _ = cli(main, *given, "split.test_cases=[patient10_roi04]", "split.val=0")
        assert code == 0
        assert "test  1 sample, 1 field, 1 case: patient10_roi04\n" in said
        assert "do not match" not in said

    def test_names_that_do_not_match_are_told_where_nothing_can_be_grouped(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw = raw_folder({"1": 2, "2": 1})
        for number, path in enumerate(sorted(raw.glob("*/*"))):
            path.rename(path.with_stem(f"img_{number % 3}"))
        given = [f"raw={raw}", "copies=1", "split.val=0", "split.test=0"]
        told = "3 of 3 names do not match case_regex (img_0, img_1, ...): each is a case of its own"
        said = cli(main, *given, f"out={tmp_path / 'out'}").out
        assert told in said.splitlines()
        assert "train 3 samples, 3 fields, 3 cases: img_0, img_1, img_2" in said.splitlines()

    def test_names_as_other_systems_write_them_are_one_patient_and_told_in_the_set(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        """An OME-TIF, a name of macOS, a blank, and one that matches nothing."""
        raw, out = raw_folder({"1": 3, "2": 1, "3": 1}), tmp_path / "out"
        names = {
            "Case_1-01": ("Rene\u0301-01.ome.tif", "Ren\u00e9-01.ome.json"),
            "Case_1-02": ("Ren\u00e9-02 .tif", "Ren\u00e9-02.tif.json"),
            "Case_1-03": ("Ren\u00e9-03.tif.tif", "Rene\u0301-03.json"),
            "Case_3-01": ("overview.tif", "overview.json"),
        }
        for old, (image, annotation) in names.items():
            (raw / f"images/{old}.tif").rename(raw / f"images/{image}")
            (raw / f"groundTruth/{old}.json").rename(raw / f"groundTruth/{annotation}")
        given = [f"raw={raw}", f"out={out}", "copies=1", "split.test_cases=[Rene\u0301]"]
        code, said, _ = cli(main, *given, "split.val=0")
        assert code == 0
        assert "test  3 samples, 3 fields, 1 case: Ren\u00e9\n" in said
        about = json.loads((out / "dataset.json").read_text())
        assert about["names"] == {
            "not_matched": 1,
            "not_matched_first": ["overview"],
            "similar_cases": [],
        }

    def test_similar_cases_stop_until_they_are_said_to_be_different(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw, out = raw_folder({"1": 1, "2": 1}), tmp_path / "out"
        for path in raw.glob("*/Case_2*"):
            path.rename(path.with_stem("CASE_1-02"))
        given = [f"raw={raw}", f"out={out}", "copies=1", "split.val=0"]
        refused = cli(main, *given)
        assert refused.code == 2
        assert not out.exists()
        assert cli(main, *given, "similar_cases=keep").code == 0
        about = json.loads((out / "dataset.json").read_text())
        assert about["names"]["similar_cases"] == [["CASE_1", "Case_1"]]

    def test_a_name_that_would_break_a_line_or_control_the_terminal_is_escaped(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw = raw_folder({"1": 1, "2": 1})
        for path in raw.glob("*/Case_2*"):
            path.rename(path.with_stem("a\n\x1b[31m-1"))
        given = [f"raw={raw}", f"out={tmp_path / 'out'}", "copies=1", "split.val=0", "split.test=0"]
        left_out = "'images/a\\n\\x1b[31m-1.tif': its name, or its case's, has control characters"
        for setting, code, num_lines in (("on_error=stop", 1, 3), ("on_error=skip", 0, 1)):
            outcome = cli(main, *given, setting)
            assert outcome.code == code
            assert left_out in outcome.err
            assert outcome.err.count("\n") == num_lines

    def test_a_name_of_255_bytes_is_one_bad_field(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw = raw_folder({"1": 1, "2": 1})
        long = "x" * 248 + "-1"
        for path in raw.glob("*/Case_2*"):
            path.rename(path.with_stem(long))
        given = [f"raw={raw}", f"out={tmp_path / 'out'}", "copies=1", "split.val=0", "split.test=0"]
        outcome = cli(main, *given, "on_error=skip")
        assert outcome.code == 0
        assert ": its name has 250 bytes, at most 200; rename it\n" in outcome.err

    def test_an_expression_that_matches_nothing_is_refused(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw = renamed(raw_folder({"1": 6}), tmp_path / "own", "brecahad")
        code, _, err = cli(
            main, f"raw={raw}", f"out={tmp_path / 'out'}", r"case_regex=(?P<case>patient\d+)"
        )
        assert code == 2
        assert "matches none of 6 names, such as patient10_roi03" in err
        assert r"'case_regex=(?P<case>patient\d+).*' does" in err
        assert not (tmp_path / "out").exists()


class TestRuns:
    def test_a_good_run_says_counts_and_where(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw, out = raw_folder({"1": 2, "2": 1, "3": 1}), tmp_path / "deep/out"
        arguments = [f"raw={raw}", f"out={out}", "copies=3", *SPLIT]
        arguments += ["augment.transforms=[gaussian]"]
        code, said, err = cli(main, *arguments)
        assert (code, err) == (0, "")
        assert re.search(r"train +6 samples, 2 fields, 1 case: Case_1\n", said)
        assert re.search(r"val +1 sample, 1 field, 1 case: Case_2\n", said)
        assert f"prepared {out}" in said
        assert "kept" not in said
        said_again = cli(main, *arguments).out
        assert "kept as they were: 4 fields\n" in said_again

    def test_another_raw_folder_into_the_same_out_is_told(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        """Most likely a mistake: what was prepared there goes, and can be made again."""
        raw, out = raw_folder({"1": 2, "2": 1, "3": 1}), tmp_path / "out"
        other = raw_folder({"3": 1, "4": 1, "5": 1}, name="other")
        settings = [f"out={out}", "copies=1", "split.val=0", "split.test_cases=[3]"]
        said = cli(main, f"raw={raw}", *settings).out
        assert "removed" not in said
        said = cli(main, f"raw={other}", *settings).out
        assert f"removed from {out}, left by an earlier preparation: 3 fields\n" in said
        assert "removed" not in cli(main, f"raw={other}", *settings, "copies=2").out

    def test_settings_reach_the_data_set(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw, out = raw_folder(), tmp_path / "out"
        file = tmp_path / "own.yaml"
        file.write_text("classes: [tumor, tubule]\nlabels: per_class\nformat: jpg\ncopies: 1\n")
        given = [f"raw={raw}", f"out={out}", *SPLIT, f"config={file}", "format=png"]
        assert cli(main, *given).code == 0
        about = json.loads((out / "dataset.json").read_text())
        assert "config" not in about["config"]
        assert about["labels"] == {"tumor": 1, "lumen": 2}
        assert about["split"] == {"train": ["Case_1"], "val": ["Case_2"], "test": ["Case_3"]}
        assert {path.suffix for path in (out / "images").iterdir()} == {".png"}

    def test_bad_input_stops_with_a_list_and_exit_code_1_or_is_left_out_and_told(
        self, cli: Callable, raw_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        raw, out = raw_folder({"1": 2, "2": 1, "3": 1}), tmp_path / "out"
        os.truncate(raw / "images/Case_1-01.tif", 1000)
        arguments = [f"raw={raw}", f"out={out}", "copies=1", *SPLIT]
        code, said, err = cli(main, *arguments)
        assert (code, said) == (1, "")
        assert err.startswith("error: 1 bad file(s):\n  images/Case_1-01.tif: ")
        assert "Traceback" not in err
        assert not (out / "dataset.json").exists()
        code, said, err = cli(main, *arguments, "on_error=skip")
        assert code == 0
        assert err.startswith("left out images/Case_1-01.tif: ")
        assert (out / "dataset.json").exists()

    def test_the_command_itself(self, raw_folder: Callable[..., Path], tmp_path: Path) -> None:
        """A new process, as a user starts it: with worker processes of its own."""
        arguments = [f"raw={raw_folder()}", f"out={tmp_path / 'out'}", *SPLIT, "workers=1"]
        ended = start(*arguments, "copies=2", "augment.transforms=[rotation]")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "prepared" in ended.stdout
        assert len(list((tmp_path / "out/images").iterdir())) == 6

    def test_the_bare_command_says_how_to_get_data(
        self, cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        outcome = cli(main)
        assert outcome.code == 2
        assert outcome.err == (
            "error: raw=data/BreCaHAD: no such folder; python -m data_prep.fetch downloads BreCaHAD"
            " there, python -m data_prep.synthetic out=data/BreCaHAD makes a synthetic data set"
            " instead\n"
        )
        assert not list(tmp_path.iterdir())

    def test_the_bare_command_prepares_what_is_in_the_usual_place(
        self,
        cli: Callable,
        raw_folder: Callable[..., Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("data").mkdir()
        raw_folder({"1": 1, "2": 1, "3": 1}).rename("data/BreCaHAD")
        outcome = cli(main, "copies=1", "workers=1")
        assert outcome.code == 0, outcome.err
        assert Path("data/prepared/dataset.json").is_file()


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_prep", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
