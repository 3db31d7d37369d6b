"""Which page of a TIF is the picture: by what the file says, never by a number."""

import io
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from data_prep.image_files.tif_pages import open_tif, picture_levels
from data_prep.raw import BadInputError
from tests.slide_files import write_pyramid

HEIGHT, WIDTH = 120, 160
rng = np.random.default_rng(0)
COLOUR = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
OTHER = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = COLOUR[..., 0]
RED, GREEN, BLUE = np.moveaxis(COLOUR, -1, 0)


def tif(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def pages(*written: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels, options in written:
            colour = "rgb" if pixels.ndim == 3 else "minisblack"
            if options.get("subfiletype", 0) & 4:
                pixels, colour = pixels > 0, "mask"
            writer.write(pixels, photometric=colour, metadata=None, **options)
    return file.getvalue()


def levels(content: bytes, name: str = "a.tif") -> list[np.ndarray]:
    """The picture's levels; three planes are put together in their order."""
    opened = io.BytesIO(content)
    opened.name = name
    with open_tif(opened) as file:
        found = picture_levels(file)
        for level in found:
            assert level.pages[0].shape[:2] == (level.height_px, level.width_px)
        read = [[page.asarray() for page in level.pages] for level in found]
    return [planes[0] if len(planes) == 1 else np.dstack(planes) for planes in read]


def picture(content: bytes, name: str = "a.tif") -> np.ndarray:
    return levels(content, name)[0]


class TestPagesOfSeveralKinds:
    @pytest.mark.parametrize("pixels", [COLOUR, GREY], ids=["colour", "grey"])
    def test_one_page_is_the_picture(self, pixels: np.ndarray) -> None:
        np.testing.assert_array_equal(picture(tif(pixels)), pixels)

    @pytest.mark.parametrize(
        "second",
        [OTHER, OTHER[:70, :90], OTHER[::2, ::2], GREY, GREY[::2, ::2]],
        ids=["same size", "other shape", "half, in strips", "grey", "half and grey"],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_of_two_pictures_none_is_chosen(self, second: np.ndarray, first: bool) -> None:
        both = [(COLOUR, {}), (second, {})]
        with pytest.raises(BadInputError, match=r"holds 2 pictures .*keep one in a file"):
            picture(pages(*(both if first else both[::-1])))

    def test_half_the_size_in_other_colours_is_no_level_though_in_tiles(self) -> None:
        tiles = {"tile": (32, 32)}
        with pytest.raises(BadInputError, match="holds 2 pictures"):
            picture(pages((COLOUR, tiles), (GREY[::2, ::2], tiles)))

    @pytest.mark.parametrize("flag", [1, 4, 5], ids=["thumbnail", "mask", "mask of a thumbnail"])
    @pytest.mark.parametrize("first", [True, False])
    def test_what_the_file_calls_thumbnail_or_mask_is_left_out(
        self, flag: int, first: bool
    ) -> None:
        both = [(COLOUR, {}), ((OTHER if flag == 1 else GREY)[:60, :70], {"subfiletype": flag})]
        read = levels(pages(*(both if first else both[::-1])))
        assert len(read) == 1
        np.testing.assert_array_equal(read[0], COLOUR)

    def test_a_mask_larger_than_the_picture_is_left_out(self) -> None:
        large = np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8)
        read = picture(pages((large, {"subfiletype": 4}), (COLOUR, {})))
        np.testing.assert_array_equal(read, COLOUR)

    def test_a_single_page_is_the_picture_whatever_it_is_called(self) -> None:
        np.testing.assert_array_equal(picture(pages((COLOUR, {"subfiletype": 1}))), COLOUR)

    @pytest.mark.parametrize("flag", [1, 4])
    def test_a_file_of_thumbnails_or_masks_only_is_refused(self, flag: int) -> None:
        with pytest.raises(BadInputError, match="none of its pages is the picture"):
            picture(pages(*[(GREY[:side], {"subfiletype": flag}) for side in (120, 60)]))

    def test_a_copy_larger_than_the_picture_is_refused(self) -> None:
        """Which of the two is meant is unknown; a damaged size looks like this."""
        with pytest.raises(BadInputError, match="is larger than the rest"):
            picture(pages((COLOUR, {"subfiletype": 1}), (OTHER[:60, :70], {})))

    def test_a_larger_picture_below_a_thumbnail_is_the_picture(self) -> None:
        """As cameras write it: the thumbnail is listed, and the picture a SubIFD of it."""
        thumbnail = (COLOUR[::2, ::2], {"subfiletype": 1, "subifds": 1})
        np.testing.assert_array_equal(picture(pages(thumbnail, (COLOUR, {}))), COLOUR)


class TestPyramids:
    @pytest.mark.parametrize(
        "options",
        [{}, {"marked": False}, {"subifds": True}, {"subifds": True, "marked": False}],
        ids=["libvips", "unmarked, in tiles", "QuPath", "unmarked SubIFDs"],
    )
    @pytest.mark.parametrize("sides", [(120, 160), (123, 161)], ids=["even", "odd"])
    def test_all_levels_are_found(
        self, tmp_path: Path, options: dict[str, bool], sides: tuple[int, int]
    ) -> None:
        image = rng.integers(0, 256, (*sides, 3), np.uint8)
        write_pyramid(tmp_path / "a.tif", image, **options)
        found = levels((tmp_path / "a.tif").read_bytes())
        np.testing.assert_array_equal(found[0], image)
        halves = [(sides[0] // 2**n, sides[1] // 2**n) for n in range(3)]
        assert [level.shape[:2] for level in found] == halves


def imagej(pixels: np.ndarray, axes: str, **metadata: Any) -> bytes:
    return tif(pixels, imagej=True, metadata={"axes": axes, **metadata})


class TestImageJ:
    def test_rgb_is_read(self) -> None:
        np.testing.assert_array_equal(picture(imagej(COLOUR, "YXS")), COLOUR)

    @pytest.mark.parametrize("num_channels", [2, 3, 4, 5])
    @pytest.mark.parametrize("mode", ["composite", "grayscale"])
    def test_channels_are_no_colours(self, num_channels: int, mode: str) -> None:
        content = imagej(np.stack([GREY] * num_channels), "CYX", mode=mode)
        with pytest.raises(BadInputError, match=rf"{num_channels} channels.*Type > RGB Color"):
            picture(content)

    def test_channels_with_names_of_dyes_are_refused_with_these(self) -> None:
        content = imagej(np.stack([GREY] * 3), "CYX", Labels=["DAPI", "FITC", "Cy5"])
        with pytest.raises(BadInputError, match=r"3 channels \(DAPI, FITC, Cy5\)"):
            picture(content)

    @pytest.mark.parametrize(
        ("labels", "planes"),
        [
            (["Red", "Green", "Blue"], [RED, GREEN, BLUE]),
            (["blue", "green", "red"], [BLUE, GREEN, RED]),
        ],
    )
    def test_slices_called_by_the_three_colours_are_colours(
        self, labels: list[str], planes: Sequence[np.ndarray]
    ) -> None:
        """What Image > Type > RGB Stack makes."""
        content = imagej(np.stack(planes), "CYX", Labels=labels)
        np.testing.assert_array_equal(picture(content), COLOUR)

    @pytest.mark.parametrize(
        ("pixels", "axes", "reason"),
        [
            (np.stack([GREY] * 3), "ZYX", "3 slices"),
            (np.stack([COLOUR] * 3), "ZYXS", "3 slices"),
            (np.stack([GREY] * 3), "TYX", "3 frames"),
            (np.stack([np.stack([GREY] * 2)] * 3), "ZCYX", "3 slices"),
        ],
    )
    def test_a_stack_or_series_is_refused(self, pixels: np.ndarray, axes: str, reason: str) -> None:
        with pytest.raises(BadInputError, match=reason):
            picture(imagej(pixels, axes))

    def test_images_without_a_kind_are_a_stack(self) -> None:
        with pytest.raises(BadInputError, match="7 images"):
            picture(tif(GREY, description="ImageJ=1.53t\nimages=7\nloop=false\n", metadata=None))


def ome(pixels: np.ndarray, axes: str, **metadata: Any) -> bytes:
    colour = "rgb" if axes.endswith("S") else "minisblack"
    return tif(pixels, ome=True, photometric=colour, metadata={"axes": axes, **metadata})


UUIDS = [f"urn:uuid:00000000-0000-4000-8000-00000000000{number}" for number in (1, 2)]


def set_of_files(own: int, splits: bool = False, named: bool = True) -> bytes:
    """One of the two files of an OME set: an image a file, or (`splits`) a plane of one a file."""
    parts = [
        f'<TiffData FirstC="{n * splits}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{n}.ome.tif">{UUIDS[n]}</UUID></TiffData>'
        for n in (0, 1)
    ]
    size = f'SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeZ="1" SizeT="1" Type="uint8"'
    if splits:
        channels = '<Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>'
        images = f'<Image><Pixels {size} SizeC="2">{channels}{"".join(parts)}</Pixels></Image>'
    else:
        channel = '<Channel SamplesPerPixel="3"/>'
        images = "".join(
            f'<Image><Pixels {size} SizeC="3">{channel}{part}</Pixels></Image>' for part in parts
        )
    uuid = f' UUID="{UUIDS[own]}"' if named else ""
    namespace = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    return tif(
        GREY if splits else (COLOUR, OTHER)[own],
        photometric="minisblack" if splits else "rgb",
        description=f'<?xml version="1.0"?><OME xmlns="{namespace}"{uuid}>{images}</OME>',
        metadata=None,
    )


class TestOme:
    def test_rgb_is_read(self) -> None:
        np.testing.assert_array_equal(picture(ome(COLOUR, "YXS")), COLOUR)

    def test_of_a_pyramid_all_levels_are_found(self) -> None:
        file = io.BytesIO()
        with tifffile.TiffWriter(file, ome=True, bigtiff=True) as writer:
            options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32)}
            writer.write(COLOUR, subifds=2, metadata={"axes": "YXS"}, **options)
            for step in (2, 4):
                writer.write(COLOUR[::step, ::step], subfiletype=1, **options)
        read = levels(file.getvalue())
        assert [level.shape[:2] for level in read] == [(120, 160), (60, 80), (30, 40)]
        np.testing.assert_array_equal(read[0], COLOUR)

    @pytest.mark.parametrize("num_channels", [2, 3, 4])
    def test_channels_are_no_colours(self, num_channels: int) -> None:
        content = ome(np.stack([GREY] * num_channels), "CYX")
        with pytest.raises(BadInputError, match=f"{num_channels} channels .*OME-XML"):
            picture(content)

    def test_channels_are_refused_with_their_names(self) -> None:
        content = ome(np.stack([GREY] * 2), "CYX", Channel={"Name": ["DAPI", "Red"]})
        with pytest.raises(BadInputError, match=r"2 channels \(DAPI, Red\)"):
            picture(content)

    def test_planes_called_by_the_three_colours_are_colours(self) -> None:
        """As some write brightfield (bioformats#4059)."""
        content = ome(
            np.stack([GREEN, RED, BLUE]), "CYX", Channel={"Name": ["Green", "Red", "Blue"]}
        )
        np.testing.assert_array_equal(picture(content), COLOUR)

    def test_colours_of_two_kinds_are_refused(self) -> None:
        named = {"Channel": {"Name": ["Red", "Green", "Blue", "Red"]}}
        with pytest.raises(BadInputError, match="4 channels"):
            picture(ome(np.stack([GREY] * 4), "CYX", **named))

    @pytest.mark.parametrize(("axes", "reason"), [("ZYX", "a stack"), ("TYX", "time points")])
    def test_a_stack_or_series_is_refused(self, axes: str, reason: str) -> None:
        with pytest.raises(BadInputError, match=f"holds 3 .*{reason}"):
            picture(ome(np.stack([GREY] * 3), axes))

    @pytest.mark.parametrize("own", [0, 1])
    @pytest.mark.parametrize("named", [True, False], ids=["by UUID", "by name"])
    def test_of_a_set_the_file_s_own_picture_is_read(self, own: int, named: bool) -> None:
        read = picture(set_of_files(own, named=named), f"{own}.ome.tif")
        np.testing.assert_array_equal(read, (COLOUR, OTHER)[own])

    def test_a_picture_whose_channels_are_in_several_files_is_refused(self) -> None:
        with pytest.raises(BadInputError, match="planes of its picture are in other files"):
            picture(set_of_files(0, splits=True))

    def test_a_file_whose_pictures_are_all_elsewhere_is_refused(self) -> None:
        with pytest.raises(BadInputError, match="its pictures are in other files"):
            picture(set_of_files(0, named=False), "renamed.ome.tif")

    def test_a_file_whose_description_is_elsewhere_is_refused(self) -> None:
        xml = '<OME UUID="urn:uuid:1"><BinaryOnly MetadataFile="a.companion.ome"/></OME>'
        with pytest.raises(BadInputError, match="its OME-XML is in another file"):
            picture(tif(COLOUR, description=xml, metadata=None))

    def test_label_and_macro_are_left_out_by_their_names(self) -> None:
        """As Bio-Formats writes a slide."""
        file = io.BytesIO()
        with tifffile.TiffWriter(file, ome=True) as writer:
            for name, pixels in [
                ("macro image", np.dstack([np.tile(GREY, (2, 2))] * 3)),
                ("slide.svs", COLOUR),
                ("label image", OTHER[:50, :50]),
            ]:
                writer.write(pixels, photometric="rgb", metadata={"axes": "YXS", "Name": name})
        np.testing.assert_array_equal(picture(file.getvalue()), COLOUR)

    @pytest.mark.parametrize(
        ("xml", "reason"),
        [
            ("<OME><Image></OME>", "damaged"),
            ('<OME><Image><Pixels SizeC="many"/></Image></OME>', "damaged"),
            ('<!DOCTYPE a [<!ENTITY b "c">]><OME>&b;</OME>', "declares types or entities"),
            ("<OME>" + "<a/>" * 2**20 + "</OME>", "at most 4194304"),
            (
                '<OME><Image><Pixels SizeC="3"><TiffData IFD="7"/></Pixels></Image></OME>',
                "names page 8, the file holds 1",
            ),
            (
                '<OME><Image><Pixels SizeC="900000000"/></Image></OME>',
                "names page 300000000, the file holds 1",
            ),
        ],
        ids=["no XML", "no number", "entities", "large", "page beyond", "channels beyond"],
    )
    def test_what_cannot_be_understood_is_refused(self, xml: str, reason: str) -> None:
        with pytest.raises(BadInputError, match=reason):
            picture(tif(COLOUR, description=xml, metadata=None))


class TestPlanesBehindOnePage:
    def test_a_stack_of_which_one_page_is_listed_is_refused(self) -> None:
        with pytest.raises(BadInputError, match="a stack behind one page"):
            picture(tif(np.stack([GREY] * 3), photometric="minisblack", truncate=True))

    def test_a_volume_is_refused(self) -> None:
        content = tif(
            np.zeros((16, 32, 32), np.uint8),
            volumetric=True,
            tile=(16, 16, 16),
            metadata=None,
            photometric="minisblack",
        )
        with pytest.raises(BadInputError, match="16 planes of a volume"):
            picture(content)

    @pytest.mark.parametrize(
        ("tags", "reason"),
        [
            ([(34412, 1, 16, b"LSM!" * 4, True)], "confocal"),
            ([(33628, 4, 2, (0, 0), True), (33629, 4, 5, (0,) * 5, True)], "5 planes"),
        ],
        ids=["LSM", "STK"],
    )
    def test_a_microscope_s_own_kind_is_refused(self, tags: Any, reason: str) -> None:
        with pytest.raises(BadInputError, match=reason):
            picture(tif(GREY, extratags=tags, metadata=None))


def with_pointer(content: bytes, choose: Callable[[list[int]], int]) -> bytes:
    """The file with another pointer after its last page: `choose` gets where its pages begin."""
    changed, offsets, at = bytearray(content), [], 4
    while offset := struct.unpack("<I", changed[at : at + 4])[0]:
        offsets.append(offset)
        at = offset + 2 + 12 * struct.unpack("<H", changed[offset : offset + 2])[0]
    changed[at : at + 4] = struct.pack("<I", choose(offsets))
    return bytes(changed)


class TestDamagedLists:
    @pytest.mark.parametrize("num_pages", [1, 2, 150])
    def test_a_ring_of_pages_is_refused(self, num_pages: int) -> None:
        small = np.zeros((16, 16), np.uint8)
        content = pages(*[(small, {"subfiletype": 1})] * num_pages)
        for target in (0, -1):
            with pytest.raises(BadInputError, match="runs in a ring"):
                picture(with_pointer(content, lambda offsets, at=target: offsets[at]))

    def test_a_ring_of_subifds_is_refused(self) -> None:
        content = bytearray(pages((COLOUR, {"subifds": 1}), (COLOUR[::2, ::2], {})))
        with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
            tag = file.pages.first.tags[330]
            where, first = tag.valueoffset, file.pages.first.offset
        content[where : where + 4] = struct.pack("<I", first)
        with pytest.raises(BadInputError, match="runs in a ring"):
            picture(bytes(content))

    def test_a_list_that_leaves_the_file_is_refused(self) -> None:
        """Cut off here, a file whose thumbnail comes first would be read as its thumbnail."""
        content = pages((COLOUR[::2, ::2], {"subfiletype": 1}))
        with pytest.raises(BadInputError, match="cut short"):
            picture(with_pointer(content, lambda _: len(content) + 100))

    def test_thousands_of_pages_end_fast(self) -> None:
        small = np.zeros((16, 16), np.uint8)
        content = tif(np.stack([small] * 3000), photometric="minisblack", metadata=None)
        began = time.monotonic()
        with pytest.raises(BadInputError, match="more than 256 pages"):
            picture(content)
        assert time.monotonic() - began < 2

    def test_pages_that_share_one_long_list_of_strips_are_refused(self) -> None:
        """A file of N bytes could have as many pages of N / 4 strips as it likes."""
        strips = np.zeros((4000, 4), np.uint8)
        content = pages(
            (strips, {"rowsperstrip": 1}), *[(np.zeros((8, 8), np.uint8), {"subfiletype": 1})] * 20
        )
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            lists = [(code, file.pages.first.tags[code]) for code in (273, 278, 279, 257)]
            heads = [(code, tag.offset) for code, tag in lists]
            targets = [{code: page.tags[code].offset for code, _ in heads} for page in file.pages]
        changed = bytearray(content)
        for target in targets[1:]:
            for code, head in heads:
                changed[target[code] : target[code] + 12] = content[head : head + 12]
        with pytest.raises(BadInputError, match="share their lists"):
            picture(bytes(changed))
