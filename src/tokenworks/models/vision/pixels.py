"""A tile's pixels to the step that its encoder runs: rescaled, normalised, cut into patches."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.backend import Float32, Int32, StepBatch
from tokenworks.models.vision.config import VisionConfig
from tokenworks.protocol.messages import Picture


@dataclass(frozen=True, slots=True)
class EncoderStep:
    """What to run, and where the rows of the result belong."""

    batch: StepBatch
    order: Int32
    """[patches / merge²] the result's row i is merged row order[i] of the picture, counted line by line."""


class Pixels:
    """Prepares the pictures of one encoder."""

    def __init__(self, config: VisionConfig, positions: Float32 | None) -> None:
        """`positions`: the learned table [table_side², width], where the program does not look them up itself."""
        self._config = config
        self._positions = positions
        # As the reference does it for each pixel: rescaled in float64, normalised in float32.
        rescaled = (np.arange(256, dtype=np.float64) * config.rescale).astype(np.float32)
        mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
        self._values = ((rescaled[:, None] - mean) / std).T  # [channel, 256]

    def objection(self, picture: Picture) -> str | None:
        """What is wrong with a picture that this encoder cannot take."""
        side = self._config.patch * self._config.merge
        grid = (picture.height // side, picture.width // side)
        if picture.height % side or picture.width % side or not all(grid):
            return f"a picture of {picture.width} x {picture.height} pixels; both must be multiples of {side}"
        if grid != (picture.rows, picture.columns):
            return f"a picture of {grid[0]} x {grid[1]} tokens takes {picture.rows} x {picture.columns}"
        if self._patches(picture) > self._config.most_patches:
            return f"a picture of {self._patches(picture)} patches; the most is {self._config.most_patches}"
        if len(picture.pixels) != 3 * picture.width * picture.height:
            return f"a picture of {picture.width} x {picture.height} pixels has {len(picture.pixels)} bytes"
        return None

    def step(self, picture: Picture) -> EncoderStep:
        """Of a picture without objections."""
        config, merge, patch = self._config, self._config.merge, self._config.patch
        rows, columns = picture.rows, picture.columns
        pixels = np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3)
        values = np.stack([self._values[channel][pixels[:, :, channel]] for channel in range(3)])
        squares = values.reshape(3, rows, merge, patch, columns, merge, patch)
        # Square by square, in each its patches line by line: [rows, columns, merge, merge, channel, patch, patch].
        squares = squares.transpose(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, merge**2, 3, 1, patch**2)
        squares = np.broadcast_to(squares, (*squares.shape[:3], config.frames, patch**2))
        order, window_starts = self._windows(rows, columns)
        patches = squares[order].reshape(-1, config.patch_width)
        row_of = self._in_squares(np.arange(rows * merge)[:, None], rows, columns)[order].ravel()
        column_of = self._in_squares(np.arange(columns * merge)[None, :], rows, columns)[order].ravel()
        count = len(patches)
        batch = StepBatch(
            tokens=np.zeros(count, np.int32),
            positions=self._indices(row_of, column_of, rows * merge, columns * merge),
            row_starts=np.array([0, count], np.int32),
            block_tables=np.empty((1, 0), np.int32),
            logit_rows=np.empty(0, np.int32),
            axes=np.stack([row_of, column_of]).astype(np.int32) if config.rope_base else None,
            inputs=np.ascontiguousarray(
                self._with_positions(patches, row_of, column_of, rows * merge, columns * merge)
            ),
            window_starts=window_starts if config.window else None,
        )
        return EncoderStep(batch, order)

    def _patches(self, picture: Picture) -> int:
        return picture.rows * picture.columns * self._config.merge**2

    def _in_squares(self, places: npt.NDArray[np.int64], rows: int, columns: int) -> npt.NDArray[np.int64]:
        """Of every patch, in the order of squares: [squares, merge²]."""
        merge = self._config.merge
        grid = np.broadcast_to(places, (rows * merge, columns * merge)).reshape(rows, merge, columns, merge)
        return np.asarray(grid.swapaxes(1, 2).reshape(rows * columns, merge**2))

    def _windows(self, rows: int, columns: int) -> tuple[Int32, Int32]:
        """The squares window by window, and at which patches windows begin."""
        squares, side = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns), self._config.window
        if not side:
            return squares.ravel(), np.empty(0, np.int32)
        windows = [
            squares[row : row + side, column : column + side].ravel()
            for row in range(0, rows, side)
            for column in range(0, columns, side)
        ]
        starts = np.cumsum([0, *(len(window) for window in windows)]) * self._config.merge**2
        return np.concatenate(windows), starts.astype(np.int32)

    def _indices(
        self, row_of: npt.NDArray[np.int64], column_of: npt.NDArray[np.int64], height: int, width: int
    ) -> Int32:
        """[patches] each one's entry of the table of positions."""
        side = self._config.table_side
        match self._config.positions:
            case "table":
                return (row_of * width + column_of).astype(np.int32)
            case "nearest":
                return (_nearest(height, side)[row_of] * side + _nearest(width, side)[column_of]).astype(np.int32)
            case _:
                return np.zeros(len(row_of), np.int32)

    def _with_positions(
        self,
        patches: Float32,
        row_of: npt.NDArray[np.int64],
        column_of: npt.NDArray[np.int64],
        height: int,
        width: int,
    ) -> Float32:
        """Behind each patch the weighted sum of the four positions around it (corners of both grids aligned)."""
        if self._positions is None:
            return patches
        side = self._config.table_side
        table = self._positions.reshape(side, side, -1)
        total = np.zeros((len(patches), table.shape[2]), np.float32)
        for row, row_weight in _around(row_of, height, side):
            for column, column_weight in _around(column_of, width, side):
                total += table[row, column] * (row_weight * column_weight)[:, None]
        return np.concatenate([patches, total], axis=1)


def _nearest(count: int, side: int) -> npt.NDArray[np.int64]:
    """[count] the entry of an axis of `side` for each of `count` patches along it, by the reference's float32
    arithmetic, whose rounding moves some of them (arXiv 2307.06304)."""
    borders = (1 / side + np.arange(side) * (1 / side)).astype(np.float32)
    borders = borders[: max(0, int(np.ceil((1.0 - 1 / side) / (1 / side))))]
    places = np.arange(count, dtype=np.float32) * (np.float32(1.0) / np.float32(count))
    return np.asarray(np.searchsorted(borders, np.minimum(places, np.float32(1.0 - 1e-6)), side="right"), np.int64)


def _around(places: npt.NDArray[np.int64], count: int, side: int) -> list[tuple[npt.NDArray[np.int64], Float32]]:
    """The two entries of an axis of `side` between which each place of `count` falls, and their weights."""
    at = (places * (side - 1)).astype(np.float32) / np.float32(max(1, count - 1))
    low = np.floor(at).astype(np.int64)
    share = (at - low).astype(np.float32)
    return [(low, np.float32(1) - share), (np.minimum(low + 1, side - 1), share)]
