"""A step as data: what the scheduler asks for, and what the runner answers."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokenworks.engine.sequence import Sequence
from tokenworks.engine.states import Writings
from tokenworks.protocol.messages import Medium, TokenLogprobs


class Piece(NamedTuple):
    """Consecutive tokens of one sequence that run in a step."""

    sequence: Sequence
    start: int
    """Position of the first token."""
    end: int
    """Position after the last token, drafts included."""
    logits_from: int
    """Logits are wanted from this position to `end`; none when it is `end` itself."""
    samples: bool
    """The last token's logits give the next token."""
    draft: tuple[int, ...] = ()
    """Guesses of the tokens that follow the sequence's last one: they run behind it in this piece. Each one's logits
    give another token if it and all before it are what was sampled. None of them ends the sequence."""
    writings: Writings = ()
    """Where the sequence's recurrent state is written, in models that have one, ..."""
    state_begin: int = -1
    """... and where the piece finds it."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. `pieces` may be empty: then there is nothing to run, but still something to commit."""

    pieces: tuple[Piece, ...]
    tokens: int
    """How many tokens run, drafts included."""
    decodes_only: bool
    """No prompt runs: a step whose time depends on little but `tokens`."""
    admitted: tuple[Sequence, ...]
    """Sequences that have just been given their slot."""
    preempted: tuple[Sequence, ...]
    """Sequences that have just lost their slot and blocks."""
    block_tables: npt.NDArray[np.int32]
    """[slots, blocks of the longest sequence] row `sequence.slot` has the sequence's blocks in order, then -1.
    The scheduler's own table: to be read until the plan is committed, never written."""
    missing: tuple[Medium, ...] = ()
    """Pictures and sounds that prompts wait for, the first in rank first."""


@dataclass(slots=True)
class StepResult:
    """What a step made; keys are indices into the plan's `pieces`."""

    tokens: list[list[int]] = field(default_factory=list)
    """For each piece that samples, in order: one token, and one more for each draft token that proved right."""
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """Of the sampled tokens, where asked for."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """Of the prompt tokens that follow the piece's tokens."""
    complete: set[int] = field(default_factory=set)
    """The last sampled token completes the sequence's grammar: nothing can follow."""
    failed: dict[int, str] = field(default_factory=dict)
    """Why the piece's sequence cannot go on; its entry in `tokens` means nothing."""
