"""Slides: the picture is found beside its label, macro and thumbnail; OpenSlide reads the rest.

What the small slides hold is checked by OpenSlide, which reads the real ones.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image as Pillow

from data_prep.image_files.open_image import open_image
from data_prep.image_files.openslide_image import is_slide, open_slide
from data_prep.image_files.tif_pages import open_tif, picture_levels
from data_prep.images.arrays import Box
from data_prep.raw import BadInputError
from tests import slide_files
from tests.dicom_file import write_dicom
from tests.slide_files import glass_and_tissue, halved, noise, write_jpeg_tiles, write_strips

IMAGE = glass_and_tissue(256, 320)
WRITERS: dict[str, Callable[..., np.ndarray]] = {
    "a.svs": slide_files.write_svs,
    "a.ndpi": slide_files.write_ndpi,
    "a.scn": slide_files.write_scn,
    "a.bif": slide_files.write_bif,
    "a.tiff": slide_files.write_philips,
    "a.tif": slide_files.write_pyramid,
}
MPP = {"a.svs": 0.25, "a.ndpi": 0.25, "a.bif": 0.25, "a.tiff": 0.25}  # the others: no tags
VENDORS = ["aperio", "hamamatsu", "leica", "ventana", "philips", "generic-tiff"]
VENDOR_OF = dict(zip(WRITERS, VENDORS, strict=True))


def levels(path: Path) -> list[np.ndarray]:
    with path.open("rb") as opened, open_tif(opened) as file:
        return [level.pages[0].asarray() for level in picture_levels(file)]


@pytest.mark.parametrize("name", WRITERS)
class TestSlidesInTif:
    def test_the_picture_is_the_full_resolution(self, tmp_path: Path, name: str) -> None:
        expected = WRITERS[name](tmp_path / name, IMAGE)
        np.testing.assert_array_equal(levels(tmp_path / name)[0], expected)

    def test_its_resolution_is_what_its_maker_writes(self, tmp_path: Path, name: str) -> None:
        WRITERS[name](tmp_path / name, IMAGE)
        with open_image(tmp_path / name) as image:
            assert image.mpp == (pytest.approx(MPP[name], rel=0.01) if name in MPP else None)

    def test_its_levels_show_the_same(self, tmp_path: Path, name: str) -> None:
        WRITERS[name](tmp_path / name, IMAGE)
        for level in levels(tmp_path / name)[1:]:
            shrunk = np.asarray(Pillow.fromarray(IMAGE).resize(level.shape[1::-1], Pillow.BOX))
            assert np.abs(level.astype(int) - shrunk).mean() < 3

    def test_content_decides_and_not_the_ending(self, tmp_path: Path, name: str) -> None:
        other = tmp_path / ("b.tif" if name != "a.tif" else "b.ndpi")
        expected = WRITERS[name](other, IMAGE)
        np.testing.assert_array_equal(levels(other)[0], expected)

    def test_openslide_takes_it_for_what_it_imitates(self, tmp_path: Path, name: str) -> None:
        expected = WRITERS[name](tmp_path / name, IMAGE)
        with openslide.OpenSlide(tmp_path / name) as slide:
            assert slide.properties["openslide.vendor"] == VENDOR_OF[name]
            at = (int(slide.properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
            read = np.asarray(slide.read_region(tuple(at), 0, IMAGE.shape[1::-1]))
        assert np.abs(read[..., :3].astype(int) - expected).max() <= 2


@pytest.mark.parametrize("name", [*WRITERS, "a.dcm"])
def test_every_slide_is_read_by_the_one_way_of_reading(tmp_path: Path, name: str) -> None:
    expected = (WRITERS | {"a.dcm": write_dicom})[name](tmp_path / name, IMAGE)
    with open_image(tmp_path / name) as image:
        assert (image.height_px, image.width_px) == IMAGE.shape[:2]
        whole = image.read(image.whole)
        part = image.read(Box(33, 70, 100, 50))
        overview = image.overview(most_shrink=4, most_px=10**5)
    assert np.abs(whole.astype(int) - expected).max() <= 2
    np.testing.assert_array_equal(part, whole[70:120, 33:133])
    if name not in ("a.tiff", "a.dcm"):  # Philips' level is padded, and has another shape
        assert overview is not None
        shrunk = Pillow.fromarray(whole).resize(overview.shape[1::-1], Pillow.BOX)
        assert np.abs(overview.astype(int) - np.asarray(shrunk)).mean() < 3


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a.tif"])
def test_a_damaged_full_resolution_is_refused_and_no_level_taken_for_it(
    tmp_path: Path, name: str
) -> None:
    WRITERS[name](tmp_path / name, IMAGE)
    number = {"a.scn": 1, "a.bif": 2}.get(name, 0)
    with (tmp_path / name).open("rb") as opened, open_tif(opened) as file:
        tag = file.pages[number].tags["ImageWidth"]
        assert tag.value == 320
    content = bytearray((tmp_path / name).read_bytes())
    content[tag.valueoffset : tag.valueoffset + 2] = b"\1\0"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match="damaged"):
        levels(tmp_path / name)


class TestWhatIsNoPicture:
    def test_aperio_s_focal_planes_are_refused(self, tmp_path: Path) -> None:
        about = slide_files.APERIO.format(w=320, h=256, mag=40, mpp=0.25)
        with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
            for _ in range(3):
                write_jpeg_tiles(writer, IMAGE, 32, description=about)
        with pytest.raises(BadInputError, match="holds 3 pictures"):
            levels(tmp_path / "a.svs")

    def test_a_label_in_tiles_is_left_out_by_its_name(self, tmp_path: Path) -> None:
        about = slide_files.APERIO.format(w=320, h=256, mag=40, mpp=0.25)
        with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
            expected = write_jpeg_tiles(writer, IMAGE, 32, description=about)
            label = "Aperio Image Library v11.2.1\r\nlabel 500x500"
            write_jpeg_tiles(writer, noise(500, 500), 32, description=label)
        np.testing.assert_array_equal(levels(tmp_path / "a.svs")[0], expected)

    def test_several_regions_of_leica_s_are_refused(self, tmp_path: Path) -> None:
        slide_files.write_scn(tmp_path / "a.scn", IMAGE, num_regions=2)
        with pytest.raises(BadInputError, match="holds 2 scanned regions"):
            levels(tmp_path / "a.scn")

    @pytest.mark.parametrize("overlap_px", [3, -3])
    def test_ventana_s_overlapping_tiles_are_refused(self, tmp_path: Path, overlap_px: int) -> None:
        slide_files.write_bif(tmp_path / "a.bif", IMAGE, overlap_px=overlap_px)
        with pytest.raises(BadInputError, match="its tiles overlap"):
            levels(tmp_path / "a.bif")

    def test_trestle_s_overlapping_tiles_are_refused(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            about = {"software": "MedScan", "description": "Objective=40;OverlapsXY= 64 64;"}
            write_jpeg_tiles(writer, IMAGE, 32, **about)
        with pytest.raises(BadInputError, match="its tiles overlap"):
            levels(tmp_path / "a.tif")

    def test_hamamatsu_s_fluorescence_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.ndpi"
        slide_files.write_ndpi(path, IMAGE)
        content = path.read_bytes()  # the tag before becomes CaptureMode 7
        other = content.replace(
            b"\x90\xff\x09\x00\x01\0\0\0\0\0\0\0", b"\xa1\xff\x04\0\x01\0\0\0\7\0\0\0"
        )
        assert content != other
        path.write_bytes(other)
        with pytest.raises(BadInputError, match="fluorescence"):
            levels(path)

    def test_perkin_elmer_s_pages_are_known_by_their_xml(self, tmp_path: Path) -> None:
        kinds = [
            ("Thumbnail", noise(60, 75)),
            ("FullResolution", IMAGE),
            ("ReducedResolution", halved(IMAGE)),
            ("Overview", noise(900, 400)),
            ("Label", noise(400, 400)),
        ]
        with tifffile.TiffWriter(tmp_path / "a.qptiff") as writer:
            for kind, pixels in kinds:
                write_strips(
                    writer,
                    pixels,
                    software="PerkinElmer-QPI",
                    description=f"<PerkinElmer-QPI-ImageDescription><ImageType>{kind}</ImageType>"
                    "</PerkinElmer-QPI-ImageDescription>",
                )
        read = levels(tmp_path / "a.qptiff")
        assert [level.shape for level in read] == [IMAGE.shape, (128, 160, 3)]
        np.testing.assert_array_equal(read[0], IMAGE)


class TestOpenSlide:
    def test_a_dicom_slide_is_read_whole_and_by_part(self, tmp_path: Path) -> None:
        path = tmp_path / "a.dcm"
        expected = write_dicom(path, IMAGE, mpp=0.5)
        with path.open("rb") as file:
            assert is_slide(path, file.read(132))
        with open_slide(path) as slide:
            assert (slide.height_px, slide.width_px) == IMAGE.shape[:2]
            assert slide.segment_px == (32, 32)
            assert slide.mpp == pytest.approx(0.5)
            whole = slide.read(slide.whole)
            part = slide.read(Box(33, 70, 100, 50))
        assert np.abs(whole.astype(int) - expected).max() <= 2  # another decoder than Pillow's
        np.testing.assert_array_equal(part, whole[70:120, 33:133])

    def test_the_overview_is_the_smallest_level_allowed(self, tmp_path: Path) -> None:
        expected = slide_files.write_svs(tmp_path / "a.svs", IMAGE)
        with open_slide(tmp_path / "a.svs") as slide:
            overview = slide.overview(most_shrink=8, most_px=80 * 64)
            assert overview is not None
            assert overview.shape == (64, 80, 3)
            shrunk = halved(expected, 2).astype(int)
            assert np.abs(overview - shrunk).mean() < 3
            assert slide.overview(most_shrink=3.9, most_px=80 * 64) is None
            assert slide.overview(most_shrink=8, most_px=80 * 64 - 1) is None

    def test_it_begins_and_ends_where_the_scan_does(self, tmp_path: Path) -> None:
        """As in QuPath; Leica's canvas is the whole slide, and around the region is nothing."""
        expected = slide_files.write_scn(tmp_path / "a.scn", IMAGE)
        with open_slide(tmp_path / "a.scn") as slide:
            assert (slide.height_px, slide.width_px) == IMAGE.shape[:2]
            assert slide.slide.dimensions[0] > IMAGE.shape[1]
            whole, overview = slide.read(slide.whole), slide.overview(4, 10**6)
            part = slide.read(Box(33, 70, 100, 50))
        assert np.abs(whole.astype(int) - expected).max() <= 2
        np.testing.assert_array_equal(part, whole[70:120, 33:133])
        assert overview is not None
        times = IMAGE.shape[0] // overview.shape[0]
        assert np.abs(overview - halved(expected, times // 2).astype(int)).mean() < 3

    def test_a_slide_is_no_mask(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "a.dcm", IMAGE)
        with (
            open_slide(tmp_path / "a.dcm") as slide,
            pytest.raises(BadInputError, match="holds colours and no labels"),
        ):
            slide.read_labels(slide.whole)

    def test_a_level_in_a_file_of_its_own_is_no_second_slide(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "full.dcm", IMAGE)
        write_dicom(tmp_path / "half.dcm", halved(IMAGE), mpp=0.5, identifier="1.2.3.5")
        with open_slide(tmp_path / "full.dcm") as slide:
            assert slide.overview(most_shrink=2, most_px=10**6) is not None
        with (
            pytest.raises(BadInputError, match="not the one of full resolution"),
            open_slide(tmp_path / "half.dcm"),
        ):
            pass

    @pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM", b"no slide" * 100])
    @pytest.mark.parametrize("name", ["a.dcm", "a.mrxs"])
    def test_what_is_no_slide_is_refused(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInputError, match="OpenSlide"), open_slide(tmp_path / name):
            pass

    def test_a_slide_cut_short_is_refused(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "a.dcm", IMAGE)
        content = (tmp_path / "a.dcm").read_bytes()
        (tmp_path / "a.dcm").write_bytes(content[: len(content) // 2])
        with pytest.raises(BadInputError), open_slide(tmp_path / "a.dcm") as slide:
            slide.read(slide.whole)

    def test_without_the_extra_the_refusal_names_it(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "a.dcm", IMAGE)
        code = (
            "import sys; sys.modules['openslide'] = None\n"
            "from pathlib import Path\n"
            "from data_prep.image_files.openslide_image import open_slide\n"
            f"with open_slide(Path({str(tmp_path / 'a.dcm')!r})): pass"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "pip install 'eosin[slides]'" in ended.stderr

    def test_a_mirax_slide_is_known_by_its_name(self) -> None:
        assert is_slide(Path("a.MRXS"), b"\xff\xd8" * 66)
        assert not is_slide(Path("a.jpg"), b"\xff\xd8" * 66)
