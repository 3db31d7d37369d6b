"""Promise 7: mutated input is read as others read it, or refused; and the fuzzer sees faults."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import painter, pictures
from tests.fuzz.readers import look_alike, readings

ROOT = Path(__file__).parents[2]
RGB_TO_THE_BIT = (
    "rgb",
    "rgb lzw",
    "rgb packbits",
    "rgb deflate",
    "rgb tiles",
    "rgb planar",
    "rgb big-endian",
    "rgb BigTIFF",
    "rgb 16 bit",
    "pyramid",
    "OME",
    "png rgb",
    "png rgb 16 bit",
)
ALL = pictures.TIFS | pictures.SLIDES | pictures.PNGS | pictures.JPGS
# A reader that is broken in a way, and what the fuzzer must call it. Each breaks one function that
# every preparation calls.
PLANTED = """
import json, sys, tempfile, time
from argparse import Namespace
from pathlib import Path
from tests.fuzz import __main__ as fuzz
from tests.fuzz.reference import Reference

fuzz.get_ready()
from data_prep.images import encoding

sound = encoding.encode_image

def swaps_red_and_blue(image_HWC, *given):
    return sound(image_HWC[..., ::-1].copy(), *given)

def raises(*given):
    raise KeyError("no such thing")

def sleeps(*given):
    time.sleep(60)

def asks_for_memory(*given):
    return bytes(2**33)

def fills_memory(image_HWC, *given):
    kept = bytearray(b"x") * (800 * 2**20)
    return sound(image_HWC, *given)

def writes_elsewhere(image_HWC, *given):
    (Path.cwd().parent / "raw" / "mine.txt").write_text("not any more")
    return sound(image_HWC, *given)

def colours_the_terminal(image_HWC, *given):
    print("\\x1b[31m")
    return sound(image_HWC, *given)

def run(number):
    with tempfile.TemporaryDirectory() as folder:
        options = Namespace(seed=0, kinds="JPG", limit_s=limit_s, keep=None, only=None)
        return fuzz.run_one(number, options, Path(folder), Reference(Path("/nowhere"))).verdict

limit_s = 30
number = next(number for number in range(50) if run(number) == "right")
found = {}
for planted in (swaps_red_and_blue, raises, sleeps, asks_for_memory, fills_memory,
                writes_elsewhere, colours_the_terminal):
    encoding.encode_image = planted
    limit_s = 3 if planted is sleeps else 30
    found[planted.__name__] = run(number)
print(json.dumps(found))
"""


def test_two_hundred_mutated_inputs_are_read_rightly_or_refused() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--runs", "200", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    total = [int(cell) for cell in done.stdout.splitlines()[-1].split("|")[2:-2]]
    assert total[0] == 200
    assert total[1] > 40  # most of the rest is damaged beyond use
    assert total[4:] == [0, 0, 0, 0]  # after those that others read


def test_planted_faults_are_noticed() -> None:
    command = [sys.executable, "-c", PLANTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "swaps_red_and_blue": "silently wrong",
        "raises": "traceback",
        "sleeps": "time",
        "asks_for_memory": "memory",
        "fills_memory": "memory",
        "writes_elsewhere": "silently wrong",
        "colours_the_terminal": "silently wrong",
    }


@pytest.mark.parametrize("name", ALL)
def test_an_independent_reader_reads_every_picture_before_it_is_mutated(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(ALL[name]())
    page = pictures.WRITERS[name][2] if name in pictures.WRITERS else None
    found = readings(path, page)
    if name in pictures.KNOWN:
        known_HWC = pictures.KNOWN[name]()
        assert all(look_alike(known_HWC, reading) for reading in found)
    assert found or name in pictures.WRITERS
    if name in RGB_TO_THE_BIT:
        assert all(np.array_equal(reading, pictures.RGB) for reading in found)
    assert all(look_alike(found[0], reading) for reading in found)


def test_pictures_are_the_same_bytes_each_time() -> None:
    """So that a run of the same seed and number is the same run."""
    made = [{name: draw() for name, draw in ALL.items()} for _ in range(2)]
    assert made[0] == made[1]


def of_json(parsed: object) -> bytes:
    return json.dumps(parsed).encode()


DISC = {(2, 1), (1, 2), (2, 2), (3, 2), (2, 3)}  # of radius 1 about the pixel (2, 2), as (x, y)


@pytest.mark.parametrize(
    ("paint", "content", "pixels"),
    [
        (painter.brecahad, of_json({"tumor": [{"x": 0.35, "y": 0.42}]}), DISC),
        (
            painter.geojson,
            of_json(
                [
                    {
                        "geometry": {
                            "type": "Polygon",
                            "coordinates": [[[1, 1], [3, 1], [3, 2.4], [1, 2.4], [1, 1]]],
                        },
                        "properties": {"classification": {"name": "tumor"}},
                    }
                ]
            ),
            {(1, 1), (2, 1)},
        ),
        (
            lambda *given: painter.table(given[0], "a", *given[1:]),
            b"File;X;Y;Class\na.png;2,5;2,5;tumor\n;;;\n",
            DISC,
        ),
    ],
)
def test_annotations_are_painted_as_by_hand(
    paint: Callable[..., painter.Painted], content: bytes, pixels: set[tuple[int, int]]
) -> None:
    mask_HW, num_lost = paint(content, (6, 7), 1)
    assert num_lost == 0
    assert {(x, y) for y, x in np.argwhere(mask_HW).tolist()} == pixels
