"""Where tokens lie for rotary positions along several axes (M-RoPE, arXiv 2409.12191): time, and a picture's two."""

from collections.abc import Sequence

import numpy as np

from tokenworks.kernels.backend import Int32
from tokenworks.protocol.messages import Picture


def along_axes(tokens: int, pictures: Sequence[Picture]) -> Int32:
    """[3, tokens] time, row and column. Text goes on along all of them; a picture's tokens share a time, spread over
    rows and columns, and what follows goes on behind the longer side."""
    axes = np.empty((3, tokens), np.int32)
    done = place = 0
    for picture in pictures:
        axes[:, done : picture.at] = place + np.arange(picture.at - done)
        place += picture.at - done
        rows, columns = np.divmod(np.arange(picture.tokens), picture.columns)
        axes[:, picture.at : picture.end] = place + np.stack([np.zeros_like(rows), rows, columns])
        done = picture.end
        place += max(picture.rows, picture.columns)
    axes[:, done:] = place + np.arange(tokens - done)
    return axes
