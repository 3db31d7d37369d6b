"""A small DICOM slide, to read in tests."""

from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from tests.slide_files import Pixels, jpeg, tiles_as_decoded, tiles_of


def write_dicom(
    path: Path, image: Pixels, tile_px: int = 32, mpp: float = 0.25, identifier: str = "1.2.3.4"
) -> Pixels:
    """Write a level of a whole slide image; return what Pillow decodes of it.

    Levels of one slide are files of one folder, with identifiers of their own.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = identifier
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    slide = Dataset()
    slide.file_meta = meta
    slide.SOPClassUID, slide.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, identifier
    slide.StudyInstanceUID, slide.SeriesInstanceUID, slide.Modality = "1.2", "1.2.3", "SM"
    slide.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = image.shape[:2]
    slide.TotalPixelMatrixFocalPlanes = slide.NumberOfOpticalPaths = 1
    slide.Rows = slide.Columns = tile_px
    slide.SamplesPerPixel, slide.PhotometricInterpretation = 3, "YBR_FULL_422"
    slide.PlanarConfiguration = slide.PixelRepresentation = 0
    slide.BitsAllocated, slide.BitsStored, slide.HighBit = 8, 8, 7
    slide.DimensionOrganizationType = "TILED_FULL"
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000] * 2, 0.001
    shared.PixelMeasuresSequence = [measures]
    slide.SharedFunctionalGroupsSequence = [shared]
    streams = [jpeg(tile) for tile in tiles_of(image, tile_px)]
    slide.NumberOfFrames = len(streams)
    slide.PixelData = encapsulate(streams)
    slide["PixelData"].is_undefined_length = True
    slide.save_as(path, enforce_file_format=True)
    return tiles_as_decoded(streams, image.shape)
