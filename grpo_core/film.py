"""Films of episodes, from the frames that an environment renders."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

FILM_SUFFIXES = (".gif", ".mp4")
# More would double the size of a GIF, and the time it takes, for little to see.
_MAX_GIF_FRAMES_PER_SECOND = 25.0

Frame = npt.NDArray[np.uint8]


def save_film(path: Path, frames: Sequence[Frame], n_per_second: float) -> None:
    """Write frames as a film that plays in real time; the name's suffix, one of ``FILM_SUFFIXES``, says which kind.

    :param frames: Images ``(height, width, 3)``, 0 to 255, all of the same size.
    :param n_per_second: How many are shown in a second.
    :raises ImportError: If imageio is missing, or imageio-ffmpeg for ``.mp4``.
    """
    import imageio.v3 as imageio  # which few who train or serve need

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        stride = math.ceil(n_per_second / _MAX_GIF_FRAMES_PER_SECOND)
        duration = 1000 * stride / n_per_second
        imageio.imwrite(path, np.stack(frames[::stride]), plugin="pillow", duration=duration, loop=0)
    else:
        # Blocks of 2: the encoder halves the resolution of colours, and would else enlarge images to blocks of 16.
        imageio.imwrite(path, np.stack(frames), plugin="FFMPEG", fps=n_per_second, macro_block_size=2)
