"""What a chip must offer to run the factory: compile a Program, run steps, sample."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from tokenworks.kernels.adapter import Adaptation
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Tensor


class Source(msgspec.Struct, frozen=True, array_like=True):
    """A file that weights come from."""

    path: str
    size_bytes: int
    modified_ns: int
    head_sha256: str
    """Of its first bytes: a safetensors header, a GGUF file's metadata, a whole config.json."""


CacheType = Literal["int8", "float16", "bfloat16", "float32", "fp8"]
"""How K and V are kept. int8: codes, each position and KV head with scales of its own (kernels/cpu/attend).
fp8: E4M3 (OCP "8-bit Floating Point"), saturating, without scales. No backend keeps all of them."""


Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest step a backend must be ready for, and the cache it keeps. All buffers are sized from this, once."""

    step_tokens: int
    sequences: int
    logit_rows: int
    blocks: int
    block_tokens: int
    cache_dtype: CacheType
    threads: int
    state_slots: int = 0
    """Places for a sequence's recurrent state, all layers of it; 0 where the program keeps none."""


@dataclass(frozen=True, slots=True)
class StateBatch:
    """Where the sequences of a step find their recurrent state, and where it is written. All int32, C-contiguous.

    S sequences, C writings. A slot that is written is in no other place here, but that a sequence may write its last
    state over the one that it began with.
    """

    begin: Int32
    """[S] slot of the state before the sequence's first row; -1: it has none yet (zeros)."""
    rows: Int32
    """[C] rows, strictly ascending, the last one of each sequence among them: ..."""
    slots: Int32
    """[C] ... the state after that row is written to this slot."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's tokens, sequence after sequence; each sequence's rows are consecutive positions.

    T tokens, S sequences, B block-table columns, R rows whose logits are wanted. All int32, C-contiguous.
    """

    tokens: Int32
    """[T]; where the executable runs ahead, -1 - i is the token that the last `sample` drew from row i."""
    positions: Int32
    """[T] position of each token in its sequence."""
    row_starts: Int32
    """[S + 1] sequence s has rows row_starts[s] .. row_starts[s + 1]."""
    block_tables: Int32
    """[S, B] block number of each block_tokens positions of sequence s; unused entries are -1."""
    logit_rows: Int32
    """[R] rows, ascending."""
    features: Float32 | None = None
    """[F, width] what takes the place of tokens' embeddings (Inject)."""
    feature_rows: Int32 | None = None
    """[F] rows, ascending."""
    axes: Int32 | None = None
    """[A, T] places of each token along several axes (Rope); without it they are its position."""
    ends: Int32 | None = None
    """[T] the position behind the last that a token sees; without it its own. Not falling within a sequence, and no
    further than the sequence's last row in this step."""
    inputs: Float32 | None = None
    """[T, width] the rows of an encoder's Input."""
    window_starts: Int32 | None = None
    """[W + 1] window w has rows window_starts[w] .. window_starts[w + 1]."""
    states: StateBatch | None = None
    """For programs that keep recurrent states."""
    adapters: Int32 | None = None
    """[S] the slot of each sequence's adapter (Executable.load_adapter), -1 where it has none."""


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """How to draw a token from each row of logits; R rows.

    Per row: divide by temperature; keep the top_k likeliest (0: all); of these the smallest set whose probability
    reaches top_p; of these the ones with at least min_p times the likeliest one's probability; renormalise; take the
    token where the cumulative probability, in order of falling probability with ties by token id, passes `uniform`.
    Temperature 0 takes the likeliest (lowest id wins a tie).
    """

    temperature: Float32
    top_k: Int32
    top_p: Float32
    min_p: Float32
    uniform: Float32
    """[R] in [0, 1)."""


@dataclass(frozen=True, slots=True)
class RowChange:
    """What a request's options do to one row of logits before a token is drawn.

    Of some tokens the value v becomes v / penalty + offset, or v * penalty + offset where v is not positive (Keskar et
    al. 2019, arXiv 1909.05858); then what is not allowed becomes -inf.
    """

    row: int
    ids: Int32
    """[N] tokens, all different."""
    penalties: Float32
    """[N]"""
    offsets: Float32
    """[N]; -inf forbids."""
    allowed: Int32 | None
    """A bit for each token, the lowest bit of a word first: 0 forbids, as does a word that is not there. None: all
    are allowed."""


UNFIT_ROW, EMPTY_ROW = -1, -2
"""Drawn instead of a token."""


class PackedPlace(Protocol):
    """Where a checkpoint's packed weights may be kept between one start and the next."""

    @property
    def path(self) -> Path: ...

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files that the weights come from; packed weights of others, or of older ones, are of no use."""

    def locked(self, *, wait: bool) -> AbstractContextManager[bool]:
        """Held by one process at a time. Gives False when another has it and `wait` is false. Raises OSError."""

    def new_file(self, size_bytes: int) -> AbstractContextManager[int]:
        """A new file's descriptor; when the block ends well the file takes its place, else it vanishes. Only under the
        lock. Raises OSError, too when there is no room for about `size_bytes`."""

    def used(self) -> None:
        """Notes that the file has been used: those used last stay longest."""


class Executable(Protocol):
    """A loaded model: weights packed, cache allocated."""

    weight_bytes: int
    cache_bytes: int
    parts: int
    """In how many a step can be run: the program's pauses, and one."""
    runs_ahead: bool
    """What is called here only begins, behind what began before; what it gives is waited for where it is looked at
    (`tolist`, np.asarray). So the next step may begin before anybody has looked at the tokens of the last one."""
    from_packed_file: bool
    """Weights were packed before, and kept in a file."""
    phases_s: Mapping[str, float]
    """Where `compile` spent its time, in order; empty where there is but one thing to say."""

    def keep_packed(self) -> None:
        """Writes the packed weights to the place given to `compile`, where they are not there yet and are large enough
        to gain by it. Slow: for a thread of its own, beside the steps. Raises OSError."""

    def run(self, batch: StepBatch, part: int | None = None) -> Float32:
        """One step, or one part of it: they are run in order, with the same batch. Returns the program's result,
        [R, vocabulary] or [S, width]; valid until the next run. Logits may be rows that lie on a device and behave as
        numpy's do for len, for rows by number (a copy then), list or slice, and where rows are written; np.asarray
        fetches them."""

    @property
    def hidden(self) -> Float32:
        """[T, width] what the program hands out beside its result, of the last run; valid until the next one. May be
        rows that lie on a device and behave as numpy's do for len, shape, copy and slices; join_rows puts them
        together, np.asarray fetches them. A sequel's steps take such rows as their inputs."""

    def run_sequel(self, batch: StepBatch) -> tuple[Float32, Float32]:
        """A step of the program's sequel: its result and what it hands out; valid until the next run."""

    def load_adapter(self, slot: int, adaptation: Adaptation) -> None:
        """From now on sequences can run with this adapter, until it is dropped; another in the slot goes. Slots are
        any small numbers. Raises ModelError for one that does not fit the model."""

    def drop_adapter(self, slot: int) -> None:
        """Frees a slot's memory, if there is something in it."""

    @property
    def adapter_bytes(self) -> int:
        """Of all slots."""

    def expert_uses(self) -> list[list[int]]:
        """How many rows each expert has had so far: of every Experts instruction in order, by the expert's number."""

    @property
    def finite(self) -> bool:
        """The last run's result holds neither NaN nor infinity. False may also mean that nobody has looked."""

    def expert_reads(self) -> tuple[int, int]:
        """Where weights lie in a file because they do not fit into memory: bytes of the experts that rows chose so far,
        and how many of them were in memory at that moment; the others were read. Else zeros."""

    @property
    def kept_expert_bytes(self) -> int:
        """Of such experts: memory that those used most take now, where a backend keeps them in memory of its own."""

    def sample(self, logits: Float32, how: SampleBatch) -> Int32:
        """[R] token ids, one per row of `logits` [R, vocabulary]; `logits` may be overwritten. Where the executable
        runs ahead: UNFIT_ROW for a row with NaN or infinity, EMPTY_ROW for one whose tokens are all forbidden."""

    def adjust(self, logits: Float32, changes: Sequence[RowChange]) -> list[int]:
        """Changes rows of `logits` in place. Returns the rows that have no token left; an executable that runs ahead
        tells that in what it draws."""

    def logprobs(self, logits: Float32, chosen: Int32, top: int) -> tuple[Float32, Int32, Int32, Float32]:
        """Of log_softmax(logits): the chosen tokens' values [R] and ranks [R] (1 is best), the `top` likeliest token
        ids [R, top] and their values [R, top], best first, ties by lower id. Does not change `logits`."""


def join_rows(parts: Sequence[Float32]) -> Float32:
    """Rows that one executable has handed out, at least one such part, one after the other: where they lie."""
    first, *others = parts
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    return first.joined(others)


class Backend(Protocol):
    """A kind of chip."""

    name: str

    def compile(
        self, program: Program, weights: Mapping[str, Tensor], limits: Limits, place: PackedPlace | None = None
    ) -> Executable:
        """Packs the weights for this chip, or takes them from `place`, and gets ready to run. Raises ModelError naming
        a weight that is missing, of the wrong shape, or of a format it cannot run."""
