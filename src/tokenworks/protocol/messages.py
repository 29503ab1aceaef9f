"""What passes between the gateway and a worker. A worker speaks token ids, never text.

Frozen structs, validated when decoded; `ToWorker` and `ToGateway` are the explicit wire tables.
Encoding: MessagePack, one message per frame (framing: fleet/link.py).
"""

from enum import StrEnum
from typing import Literal

import msgspec

from tokenworks.protocol.sampling import Sampling


class Finish(StrEnum):
    """Why a sequence ended. Every request ends exactly once, with exactly one of these."""

    STOP = "stop"
    """An end-of-sequence or stop token, or the grammar is complete."""
    LENGTH = "length"
    """max_tokens or the context limit."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    """The request itself cannot be done (`TokenChunk.error` says why); trouble of the worker's own ends the worker."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, natural logarithm, of the model's distribution before any sampling option."""

    token_id: int
    logprob: float
    rank: int
    """1 for the likeliest token of the vocabulary."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens, best first."""


class Picture(msgspec.Struct, frozen=True, array_like=True):
    """A picture in a prompt, or a tile of one, as its encoder takes it: resized, not yet normalised."""

    at: int
    """The first of the prompt's tokens that stand for it: rows * columns, line by line."""
    rows: int
    columns: int
    width: int
    height: int
    pixels: bytes
    """[height, width, 3] RGB."""
    digest: bytes
    """A hash of its pixels and size: equal for equal pictures only."""

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def end(self) -> int:
        """Behind its last token."""
        return self.at + self.tokens


class Sound(msgspec.Struct, frozen=True, array_like=True):
    """Up to thirty seconds of a recording, as its encoder takes them; a prompt begins with it."""

    tokens: int
    """So many of the prompt's first tokens stand for it."""
    mels: bytes
    """[frames, bins] float32: a spectrogram of logarithms."""
    digest: bytes
    """A hash of that: equal for equal sounds only."""
    at: int = 0

    @property
    def end(self) -> int:
        """Behind its last token."""
        return self.at + self.tokens


Medium = Picture | Sound


class Adapter(msgspec.Struct, frozen=True, array_like=True):
    """A LoRA adapter. Two are the same only if all of this is."""

    name: str
    path: str
    """Its folder."""
    version: int = 0
    """Grows when a name is loaded again: the files may have changed."""


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Start, or carry on, one output sequence.

    `output_ids` are tokens that an earlier worker already made: they count towards max_tokens, penalties, the
    grammar and the random stream, and are not sent again.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    output_ids: tuple[int, ...] = ()
    priority: int = 0
    """Lower runs first; equal priorities in order of arrival."""
    pictures: tuple[Picture, ...] = ()
    """In the order of their tokens in the prompt."""
    adapter: Adapter | None = None
    """What the model runs with."""
    sound: Sound | None = None
    """What it hears, if it does."""

    @property
    def media(self) -> tuple[Medium, ...]:
        """What some of the prompt's tokens stand for, in their order."""
        return self.pictures if self.sound is None else (self.sound,)


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Encode inputs: to vectors, pooled as the checkpoint's own files say, or pairs of texts to scores."""

    request_id: str
    inputs: tuple[tuple[int, ...], ...]
    second_from: tuple[int, ...] = ()
    """Where in each input its second text begins; (): no input has one."""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The client is gone: free everything of this request by the next step. Answered by a chunk with CANCELLED."""

    request_id: str


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """Read an adapter now, to have it in memory, or to know what is wrong with it. Answered by AdapterLoaded."""

    request_id: str
    adapter: Adapter


class DropAdapter(msgspec.Struct, frozen=True, tag="drop_adapter"):
    """No request will name this adapter again; those that run with it finish."""

    adapter: Adapter


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Finish what is running, take nothing new, then exit with status 0."""


ToWorker = Generate | Embed | Cancel | LoadAdapter | DropAdapter | Drain


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """First message of a worker: the model is loaded."""

    kind: Literal["generate", "embed", "score", "transcribe"]
    context_tokens: int
    vocabulary: int
    weight_bytes: int
    kv_bytes: int
    load_s: dict[str, float]
    """Where the start-up time went: phase -> seconds, in order."""
    draft_weight_bytes: int = 0
    draft_kv_bytes: int = 0
    """Of its draft model; 0 without one."""
    heard_tokens: int = 0
    """Of a model that hears: so many tokens of every prompt stand for a sound, of a spectrogram with ..."""
    heard_tones: int = 0


NOT_FINITE = "the model gave numbers that are not finite"
"""The error of a chunk with FAILED whose request is not to blame."""


class TokenChunk(msgspec.Struct, frozen=True, tag="chunk", omit_defaults=True):
    """What one step made for one request; the one that has `finish` is the last."""

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token in `token_ids` when asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """On the first chunk, when asked for: one per prompt token but the first."""
    cached_tokens: int = 0
    """On the first chunk: prompt tokens that came from the prefix cache."""
    finish: Finish | None = None
    stop_token_id: int | None = None
    """The token of a STOP (the last of `token_ids`)."""
    error: str | None = None
    """With FAILED: what is wrong with the request, for its client; or NOT_FINITE."""


class EngineStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """The engine's state after a step; totals count from the worker's start."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    """Blocks that running sequences hold (shared ones once)."""
    kv_blocks_cached: int = 0
    """Blocks only the prefix cache holds: given up when needed."""
    kv_blocks_total: int = 0
    state_slots_used: int = 0
    """Slots of recurrent states that running sequences hold: their own, and snapshots they go on from."""
    state_slots_cached: int = 0
    """Snapshots only the prefix cache holds: given up when needed."""
    state_slots_total: int = 0
    """0 for models without recurrent states."""
    prompt_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    output_tokens_total: int = 0
    preemptions_total: int = 0
    steps_total: int = 0
    draft_tokens_total: int = 0
    """Guesses that ran (speculative decoding)."""
    draft_tokens_accepted_total: int = 0
    """Those that proved right: each saved a step of its sequence."""
    expert_bytes_total: int = 0
    """Of experts that tokens chose, where weights do not fit into memory and lie in a file."""
    expert_bytes_resident_total: int = 0
    """Those that were in memory when they were chosen; the others were read."""
    expert_bytes_kept: int = 0
    """Memory that the experts used most take now."""
    pictures_encoded_total: int = 0
    """Tiles counted one by one; of a model that hears, sounds."""


class StepDone(msgspec.Struct, frozen=True, tag="step"):
    """One engine step: everything it made, in one message."""

    chunks: tuple[TokenChunk, ...]
    stats: EngineStats
    share: float = 0.0
    """How many tokens ran, as a share of the most that a step can have."""


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """The worker starts on these requests, which waited in line till now. Sent before it does, so that those to blame
    are known if it dies of it."""

    request_ids: tuple[str, ...]


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """What one Embed asked for: float32, little-endian, row after row, `width` numbers a row; scores are 1 wide."""

    request_id: str
    width: int = 0
    vectors: bytes = b""
    error: str | None = None


class AdapterLoaded(msgspec.Struct, frozen=True, tag="adapter_loaded"):
    """What one LoadAdapter came to."""

    request_id: str
    error: str | None = None


ToGateway = Ready | Begun | StepDone | Embedded | AdapterLoaded
