"""From logits to tokens: each sequence's options, its own random numbers, log-probabilities.

A sequence's parameters lie in arrays by slot, so that a step gathers them in a few array operations; only rows with
options that change the logits (engine/adjust.py) are touched one by one.
"""

from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt

from tokenworks.engine.adjust import Adjustment
from tokenworks.engine.constrain import Matcher
from tokenworks.engine.sequence import Sequence, State
from tokenworks.kernels.backend import EMPTY_ROW, UNFIT_ROW, Executable, Float32, Int32, RowChange, SampleBatch
from tokenworks.protocol.errors import EngineError
from tokenworks.protocol.messages import NOT_FINITE, Generate, TokenLogprobs

_MESSAGES = {
    UNFIT_ROW: NOT_FINITE,
    EMPTY_ROW: "grammar, rules and logit bias leave no token to choose",
}

UInt64 = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(values: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniforms(streams: UInt64, counters: npt.NDArray[np.int64]) -> Float32:
    """Number `counters[i]` of stream `streams[i]`: in [0, 1), 24 bits, whatever was drawn before."""
    bits = mix(streams + _GAMMA * counters.astype(np.uint64))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def stream_of(seed: int) -> np.uint64:
    """The stream of a seed: mixed once, so that neighbouring seeds have nothing in common."""
    return np.uint64(mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], np.uint64) + _GAMMA)[0])


class Sampler:
    """`open` a request, `load` it when it gets a slot, `draw` from its rows, `close` it."""

    def __init__(self, executable: Executable, slots: int, eos_token_ids: frozenset[int]) -> None:
        self._executable = executable
        self._eos_token_ids = eos_token_ids
        self._temperature = np.zeros(slots, np.float32)
        self._top_k = np.zeros(slots, np.int32)
        self._top_p = np.ones(slots, np.float32)
        self._min_p = np.zeros(slots, np.float32)
        self._streams = np.zeros(slots, np.uint64)
        self._adjustments: dict[str, Adjustment] = {}

    def open(self, request: Generate, matcher: Matcher | None) -> bool:
        """Prepares a request; true when its grammar is complete already. Raises EngineError if its tokens break it."""
        sampling = request.sampling
        if (
            matcher is None
            and sampling.speech is None
            and sampling.repetition_penalty == 1
            and sampling.presence_penalty == sampling.frequency_penalty == 0
            and not sampling.logit_bias
            and sampling.min_tokens == 0
        ):
            return False
        ends = self._eos_token_ids | set(sampling.stop_token_ids)
        adjustment = Adjustment(sampling, request.prompt_ids, request.output_ids, ends, matcher)
        self._adjustments[request.request_id] = adjustment
        return adjustment.complete

    def close(self, request_id: str) -> None:
        self._adjustments.pop(request_id, None)

    def load(self, sequence: Sequence) -> None:
        """The sequence has got its slot."""
        sampling, slot = sequence.request.sampling, sequence.slot
        assert slot >= 0
        self._temperature[slot] = sampling.temperature
        self._top_k[slot] = sampling.top_k
        self._top_p[slot] = sampling.top_p
        self._min_p[slot] = sampling.min_p
        self._streams[slot] = stream_of(sampling.seed)

    def goes_by_steps(self, sequence: Sequence) -> bool:
        """A row of this sequence can only be sampled, or is better sampled, when the token before it is known."""
        return sequence.request.request_id in self._adjustments or sequence.request.sampling.logprobs is not None

    def draw(self, logits: Float32, sequences: SequenceOf[Sequence], ahead: SequenceOf[int]) -> "Drawn":
        """Draws a token from each row; row i of `logits` [R, vocabulary] is of `sequences[i]`, and may be overwritten.
        Rows of sequences that have ended give anything.

        `ahead[i]` tokens that this sequence does not have yet come before the row's. Only one row of a sequence that
        `goes_by_steps` may be here, and those tokens must have been taken before.
        """
        asked = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.logprobs is not None]
        raw = logits[asked] if asked else None
        drawn = Drawn(self._executable)
        if self._adjustments:
            self._adjust(logits, sequences, ahead, drawn)
        slots = np.array([sequence.slot for sequence in sequences])
        temperature = self._temperature[slots]
        how = SampleBatch(
            temperature=temperature,
            top_k=self._top_k[slots],
            top_p=self._top_p[slots],
            min_p=self._min_p[slots],
            uniform=self._uniforms(slots, sequences, ahead) if temperature.any() else temperature,
        )
        drawn.begin(self._executable.sample(logits, how), raw, asked, sequences)
        return drawn

    def _adjust(self, logits: Float32, sequences: SequenceOf[Sequence], ahead: SequenceOf[int], drawn: "Drawn") -> None:
        changes: list[RowChange] = []
        for row, sequence in enumerate(sequences):
            adjustment = self._adjustments.get(sequence.request.request_id)
            if adjustment is None or sequence.state is State.ENDED:
                continue
            if adjustment.speech is not None:
                numbers = logits[row]
                adjustment.speech.apply(numbers)
                logits[row] = numbers
            try:
                changes.append(adjustment.change(row, sequence.output_tokens + ahead[row]))
                drawn.adjusted.append((row, adjustment))
            except EngineError as error:
                drawn.failed[row] = error.message
                logits[row] = 0  # harmless for the others
        for row in self._executable.adjust(logits, changes) if changes else ():
            drawn.failed[row] = _MESSAGES[EMPTY_ROW]
            logits[row] = 0

    def _uniforms(
        self, slots: npt.NDArray[np.int64], sequences: SequenceOf[Sequence], ahead: SequenceOf[int]
    ) -> Float32:
        outputs = np.array([len(sequence.tokens) - sequence.prompt_tokens for sequence in sequences])
        return uniforms(self._streams[slots], outputs + np.array(ahead))


class Drawn:
    """Tokens drawn from rows of a step, and what goes with them: on their way until `take`."""

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        self.adjusted: list[tuple[int, Adjustment]] = []
        """By row, who is told its token."""
        self.failed: dict[int, str] = {}
        """By row, why nothing can be drawn from it."""

    def begin(self, chosen: Int32, raw: Float32 | None, asked: list[int], sequences: SequenceOf[Sequence]) -> None:
        """`raw`: the rows `asked` for their log-probabilities, as the model gave them."""
        self._chosen = chosen
        self._asked = dict(zip(asked, [sequences[row].request.sampling.logprobs or 0 for row in asked], strict=True))
        if raw is not None:
            tops = list(self._asked.values())
            self._logprobs = Logprobs(self._executable, raw, chosen[asked], tops)

    def take(self) -> tuple[list[int], dict[int, TokenLogprobs], set[int], dict[int, str]]:
        """The tokens, and by row: log-probabilities where asked for, whose grammar is complete, who failed why. Once
        only: requests' options are told the tokens."""
        tokens: list[int] = self._chosen.tolist()
        for row, token in enumerate(tokens):
            if token < 0:
                self.failed.setdefault(row, _MESSAGES[token])
        complete: set[int] = set()
        for row, adjustment in self.adjusted:
            if row in self.failed:
                continue
            try:
                adjustment.take(tokens[row])
            except EngineError as error:
                self.failed[row] = error.message
            if adjustment.complete:
                complete.add(row)
        logprobs = dict(zip(self._asked, self._logprobs.take(), strict=True)) if self._asked else {}
        return tokens, logprobs, complete, self.failed


class Logprobs:
    """Of each row's chosen token, with the `tops[row]` likeliest ones; of the model's own distribution. On their way
    until `take`."""

    def __init__(self, executable: Executable, logits: Float32, chosen: Int32, tops: list[int]) -> None:
        self._tops = tops
        self._arrays = (chosen, *executable.logprobs(logits, chosen, max(tops)))

    def take(self) -> list[TokenLogprobs]:
        numbers = [array.tolist() for array in self._arrays]
        return [
            TokenLogprobs(token, value, rank, tuple(zip(ids[:top], likeliest[:top], strict=True)))
            for token, value, rank, ids, likeliest, top in zip(*numbers, self._tops, strict=True)
        ]
