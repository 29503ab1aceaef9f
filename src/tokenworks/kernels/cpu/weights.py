"""Brings a checkpoint's weights into the executor: packed now, or taken from the file of an earlier packing.

Vectors (norms, biases, rotary frequencies) always come from the checkpoint: they are a ten-thousandth of its bytes, and
some depend on settings. Matrices take one of three ways:

    no file yet, and they fit into memory     packed into memory; `keep` writes the file when the model is serving
    no file yet, and they do not              packed, written and dropped batch by batch, then as below
    a file                                    mapped

A mapped file that fits into memory is read through once, which checks it and spares the first request the waiting;
where the system does not map it by large pages, it is copied into memory that has them. One that does not fit is left
to the system, which reads what is touched and drops what is not, but for experts (kernels/cpu/keeper.py).
"""

import contextlib
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tokenworks.kernels.backend import PackedPlace
from tokenworks.kernels.check import Shape, check_operations, check_shape, look_up, needs
from tokenworks.kernels.cpu import _cpu
from tokenworks.kernels.cpu.packed_file import (
    Bytes,
    Facts,
    PackedFile,
    Writer,
    mapped_by_large_pages,
    open_packed,
    reopened,
)
from tokenworks.kernels.program import Embed, Experts, Linear, LinearHeads, Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.clock import wall_time_s
from tokenworks.protocol.errors import ModelError
from tokenworks.telemetry.memory import memory_available_bytes

PACK_BATCH_BYTES = 32 << 20
"""Weights packed between two releases of file pages: bounds what lies in memory twice, or at all when streaming."""

KEPT_BYTES = 64 << 20
"""Smaller models are not worth a file: packing them takes less than a tenth of a second."""

MEMORY_SHARE = 0.6
"""Of the available memory, that weights may fill. The size of files stands for that of what is packed from them, which
is up to 1.55 times as large (Q5_0 becomes 8 bits)."""

Packed = dict[str, tuple[Facts, Bytes]]


class Loader:
    """One checkpoint on its way into one executor."""

    from_file = False
    """The matrices had been packed before."""

    in_file = False
    """They run from there, as they do not fit into memory."""

    def __init__(
        self,
        executor: _cpu.Executor,
        program: Program,
        weights: Mapping[str, Tensor],
        place: PackedPlace | None,
    ) -> None:
        self._executor, self._program, self._weights, self._place = executor, program, weights, place
        self._needs = needs(program)
        instructions = [instruction for step in program.steps for instruction in step.instructions]
        tables = {i.table for i in instructions if isinstance(i, Embed)}
        tables |= {name for i in instructions if isinstance(i, Linear | LinearHeads) for name in i.weights}
        experts = [expert for i in instructions if isinstance(i, Experts) for expert in i.experts]
        tables |= {name for expert in experts for name in expert.weights}
        self._matrices = [name for name in self._needs if name in tables]
        self._vectors = [name for name in self._needs if name not in tables]
        self.shapes: dict[str, Shape] = {}
        """Of every weight, when loaded."""
        self._unkept: Packed = {}
        """What `keep` is to write."""

    def load(self) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of matrices and of vectors, by name. Raises ModelError."""
        try:
            vectors = {name: self._executor.vector(raw(name, self._look_up(name))) for name in self._vectors}
            packed = self._packed()
            check_operations(self._program, self.shapes)
            matrices = {name: self._executor.use(*packed[name]) for name in self._matrices}
        except ValueError as error:
            raise ModelError(f"This checkpoint cannot run on the CPU backend: {error}.") from None
        return matrices, vectors

    def keep(self) -> None:
        """Writes what `load` packed, unless another process is doing so. Raises OSError."""
        packed, self._unkept = self._unkept, {}
        if not packed or self._place is None:
            return
        with self._place.locked(wait=False) as mine:
            if mine and open_packed(self._place.path, self._place.sources) is None:
                self._write(self._place, packed.items())

    def _packed(self) -> Packed:
        place = self._place
        available_bytes = memory_available_bytes() or math.inf
        if place is not None:
            if (file := self._open(place)) and (packed := self._from_file(place, file, available_bytes)):
                return packed
            if sum(source.size_bytes for source in place.sources) > available_bytes * MEMORY_SHARE:
                try:
                    return self._streamed(place)
                except OSError:
                    pass  # no room for a file: it may fit into memory yet
        packed = {}
        for batch in self._batches():
            packed.update(batch)
        if sum(data.nbytes for _, data in packed.values()) >= KEPT_BYTES:
            self._unkept = packed
        return packed

    def _open(self, place: PackedPlace) -> PackedFile | None:
        """One that holds exactly the program's matrices."""
        file = open_packed(place.path, place.sources)
        if file is None:
            return None
        shapes = self.shapes | {name: facts[1:3] for name, (facts, _) in file.matrices().items()}
        if shapes.keys() != self._needs.keys():
            return None
        try:
            for name in self._matrices:
                check_shape(name, shapes[name], self._needs[name])
            check_operations(self._program, shapes)
        except ModelError:
            return None
        self.shapes = shapes
        return file

    def _from_file(self, place: PackedPlace, file: PackedFile, available_bytes: float) -> Packed | None:
        """None when it is damaged."""
        if file.data.nbytes <= available_bytes * MEMORY_SHARE:
            if mapping := _mapping_of(file.data):
                mapping.madvise(mmap.MADV_WILLNEED)  # from the disk half as fast again as by touching it
            if file.damaged(self._executor):
                with contextlib.suppress(OSError):
                    place.path.unlink()
                return None
            if not mapped_by_large_pages(file.data):
                file = replace(file, data=self._executor.copy(file.data))
        else:
            self._run_from(place, file)
        place.used()
        self.from_file = True
        return dict(file.matrices())

    def _streamed(self, place: PackedPlace) -> Packed:
        """Packs into the file, with no more than a batch in memory. Raises OSError."""
        with place.locked(wait=True):
            file = self._open(place)  # another process may have made it in the meantime
            if file is None:
                self._write(place, (item for batch in self._batches() for item in batch.items()))
                file = self._open(place)
        if file is None:
            raise OSError("the file of packed weights is gone")
        self._run_from(place, file)
        return dict(file.matrices())

    def _run_from(self, place: PackedPlace, file: PackedFile) -> None:
        with reopened(place.path, file) as descriptor:
            self._executor.in_file(file.data, descriptor)
        self.in_file = True

    def _write(self, place: PackedPlace, matrices: Iterable[tuple[str, tuple[Facts, Bytes]]]) -> None:
        with place.new_file(sum(source.size_bytes for source in place.sources)) as file:
            writer = Writer(file, place.sources)
            for name, (facts, data) in matrices:
                writer.add(name, facts, data)
            writer.finish(int(wall_time_s()))

    def _batches(self) -> Iterator[Packed]:
        """Looks every matrix up, once, and packs it; gives the checkpoint's pages back as it goes."""
        batch: list[Tensor] = []
        for number, name in enumerate(self._matrices):
            batch.append(self._look_up(name))
            full = sum(tensor.data.nbytes for tensor in batch) >= PACK_BATCH_BYTES
            if full or number == len(self._matrices) - 1:
                names = self._matrices[number + 1 - len(batch) : number + 1]
                raws = [raw(*pair) for pair in zip(names, batch, strict=True)]
                yield dict(zip(names, self._executor.pack(raws), strict=True))
                _release_pages(batch)
                batch, raws = [], []

    def _look_up(self, name: str) -> Tensor:
        tensor = look_up(self._weights, name, self._needs[name])
        self.shapes[name] = tensor.shape
        return tensor


def raw(name: str, tensor: Tensor) -> "_cpu.Raw":
    """As the executor takes it."""
    return name, tensor.format, math.prod(tensor.shape[:-1]), tensor.shape[-1], tensor.data, tensor.row_scales


def _release_pages(tensors: Iterable[Tensor]) -> None:
    """Drops packed tensors' file pages from this process; they stay in the system's file cache."""
    for mapping in {id(m): m for tensor in tensors if (m := _mapping_of(tensor.data)) is not None}.values():
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping_of(array: object) -> mmap.mmap | None:
    """The mapped file that an array is a view of, if it is one."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array
