import numpy as np
import numpy.typing as npt

VERSION: int

def bilinear(
    pixels: npt.NDArray[np.uint8],
    pixels_size: tuple[int, int],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    num_known: int,
    above: npt.NDArray[np.int32],
    share: npt.NDArray[np.float32],
    moved: npt.NDArray[np.uint8],
    moved_size: tuple[int, int],
    /,
) -> bool: ...
