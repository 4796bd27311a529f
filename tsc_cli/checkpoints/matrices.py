"""Weight matrices in checkpoint files, read a few rows at a time.

Files are read with plain reads into buffers, not mapped: the pages of a mapped file that have been
touched count as the process's memory until the kernel takes them back, and a probe touches every
page of a checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from formats.errors import CorruptError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Indexes = NDArray[np.int64]

LARGEST = 1e15  # no weight is; below it a sum of squares over a row fits float32
_PIECE = 1 << 21  # bytes that are read and decoded at once


@dataclass(frozen=True)
class Encoding:
    """How values are stored: `block` of them in `size` bytes.

    `decode` turns uint8 [n, bytes] into float32 [n, values].

    `decode` None means that they cannot be read here.
    """

    name: str
    block: int
    size: int
    decode: Callable[[Any], Floats] | None

    def row_bytes(self, values: int) -> int:
        return values // self.block * self.size


@dataclass(frozen=True, slots=True)  # a checkpoint may have a million
class Tensor:
    """A tensor in a checkpoint file.

    Attributes:
        shape: row-major, outermost first.
        offset: of its first byte in the file; reader and file size have been checked to hold all of
            it.
    """

    path: str
    name: str
    encoding: Encoding
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Band:
    """The outputs of a stored matrix that belong to one part: `length` of every `stride`."""

    start: int
    length: int
    stride: int
    count: int = 1

    @property
    def total(self) -> int:
        return self.length * self.count

    def outputs(self, rows: Indexes) -> Indexes:
        """Numbers of outputs in the stored matrix of the part's `rows`."""
        return self.start + rows // self.length * self.stride + rows % self.length


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [outputs, inputs], or the part of a fused one that `band` names.

    Attributes:
        first: where in the tensor's outermost dimension the matrix starts, counted in stored rows:
            an expert's of many.
        transposed: stored as [inputs, outputs], as GPT-2's Conv1D does.
    """

    tensor: Tensor
    band: Band
    stored: tuple[int, int]
    first: int = 0
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.band.total, self.stored[0 if self.transposed else 1]

    def rows(self, numbers: Indexes) -> Floats:
        """Some rows, each the weights of one output channel.

        Args:
            numbers: ascending numbers of rows, int64 [n].
        Returns:
            float32 [n, inputs].
        Raises:
            CorruptError: a value is not finite, or the file has become shorter.
            StorageError: the file cannot be read.
        """
        outputs = self.band.outputs(numbers)
        try:
            with open(self.tensor.path, "rb", buffering=0) as file:
                values = self._columns(file, outputs) if self.transposed else self._rows(file, outputs)
        except OSError as error:
            raise StorageError(f"cannot be read: {error.strerror}", path=self.tensor.path) from error
        self._check(values)
        return values

    def _rows(self, file: FileIO, outputs: Indexes) -> Floats:
        values = np.empty((len(outputs), self.stored[1]), np.float32)
        ends = [0, *(np.flatnonzero(np.diff(outputs) != 1) + 1).tolist(), len(outputs)]
        step = self._step()
        for first, last in pairwise(ends):
            for start in range(first, last, step):
                stop = min(start + step, last)
                values[start:stop] = self._stored_rows(file, int(outputs[start]), stop - start)
        return values

    def _columns(self, file: FileIO, outputs: Indexes) -> Floats:
        height = self.stored[0]
        values = np.empty((len(outputs), height), np.float32)
        step = self._step()
        for start in range(0, height, step):
            count = min(step, height - start)
            values[:, start : start + count] = self._stored_rows(file, start, count)[:, outputs].T
        return values

    def _step(self) -> int:
        return max(1, _PIECE // self.tensor.encoding.row_bytes(self.stored[1]))

    def _stored_rows(self, file: FileIO, start: int, count: int) -> Floats:
        """float32 [count, stored width]."""
        encoding, width = self.tensor.encoding, self.stored[1]
        octets = encoding.row_bytes(width)
        data = np.empty((count, octets), np.uint8)
        file.seek(self.tensor.offset + (self.first + start) * octets)
        view, filled = data.data.cast("B"), 0
        while filled < len(view):
            got = file.readinto(view[filled:])
            if not got:
                raise CorruptError(f"ends within tensor {self.tensor.name!r}", path=self.tensor.path)
            filled += got
        assert encoding.decode is not None  # stacks.py refuses the others by name
        return encoding.decode(data)

    def _check(self, values: Floats) -> None:
        if values.size and not max(float(values.max()), -float(values.min())) <= LARGEST:
            culprit = "NaN" if np.isnan(values).any() else f"values beyond {LARGEST:g}"
            raise CorruptError(
                f"tensor {self.tensor.name!r} holds {culprit}",
                path=self.tensor.path,
                hint="fetch the checkpoint again, or leave this type of matrix out with --types",
            )


def whole(tensor: Tensor) -> Matrix:
    """All of a tensor of two dimensions, outputs first."""
    height, width = tensor.shape
    return Matrix(tensor, Band(0, height, height), (height, width))


def spread(rows: int, asked: int | None) -> Indexes:
    """Return the numbers of `asked` evenly spread rows; of all if it is None or not fewer."""
    if asked is None or asked >= rows:
        return np.arange(rows, dtype=np.int64)
    return np.arange(asked, dtype=np.int64) * rows // asked


def workers() -> int:
    """How many threads the process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1
