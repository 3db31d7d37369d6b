import numpy as np
import numpy.typing as npt

VERSION: int

def bilinear(
    pixels: npt.NDArray[np.uint8],
    pixels_size: tuple[int, int],
    border_px: int,
    nodes: npt.NDArray[np.float32],
    num_nodes: tuple[int, int],
    step_px: int,
    moved: npt.NDArray[np.uint8],
    moved_size: tuple[int, int],
    /,
) -> bool: ...
