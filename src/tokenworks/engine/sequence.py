"""One output sequence on its way through the scheduler: its tokens, what of them is in the cache, and its state."""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokenworks.engine.lookup import PromptLookup
from tokenworks.kvcache.prefix import Key, Node
from tokenworks.protocol.messages import Generate, Medium, TokenLogprobs

Rank = tuple[float, int]
"""Who goes first: the lower one. Never changes, and no two are equal."""


class State(StrEnum):
    WAITING = "waiting"
    """Holds nothing. New, or preempted: its output so far is then computed again like a prompt."""
    PREFILL = "prefill"
    """Has a slot and blocks; some tokens before the last are not in the cache yet."""
    DECODE = "decode"
    """Makes a token in every step, or several when guesses prove right."""
    ENDED = "ended"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILL, State.ENDED}),
    State.PREFILL: frozenset({State.DECODE, State.WAITING, State.ENDED}),
    State.DECODE: frozenset({State.WAITING, State.ENDED}),
    State.ENDED: frozenset(),
}


_NUMBER_SHIFT = 32
"""Token ids are smaller than two to the power of this."""


class AdapterUse(NamedTuple):
    """A sequence's adapter, as long as the sequence lives (engine/adapters.py)."""

    slot: int
    number: int


class Tenant:
    """What has blocks in a cache (engine/space.py): a list of tokens that only grows, and what of them is there.

    Its blocks are its slot's row of the cache's block table: the first `len(nodes)` are the prefix tree's, up to
    `blocks` its own.
    """

    __slots__ = ("blocks", "computed", "filling", "keys", "nodes", "slot", "tokens")

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.keys = tokens
        """What they are in the prefix tree."""
        self.slot = -1
        self.computed = 0
        """So many of `tokens` are in the cache."""
        self.blocks = 0
        self.nodes: list[Node] = []
        """While it waits: what the last look found in the tree, not held."""
        self.filling: tuple[Node, Key] | None = None
        """The block of its prompt that it is computing, where others may wait for it."""

    @property
    def prefilling(self) -> bool:
        """It computes a prompt whose blocks others may wait for."""
        return False


class Sequence(Tenant):
    """Plain state, changed by the scheduler only."""

    __slots__ = (
        "adapter",
        "axes",
        "cached_tokens",
        "cancelled",
        "due",
        "ends",
        "first_chunk_due",
        "fork",
        "in_steps",
        "last_snapshot",
        "longest",
        "lookup",
        "min_tokens",
        "planned",
        "prompt_logprobs",
        "prompt_logprobs_due",
        "prompt_tokens",
        "rank",
        "request",
        "state",
        "state_begin",
        "state_slot",
        "writings",
    )

    def __init__(
        self,
        request: Generate,
        rank: Rank,
        eos_token_ids: frozenset[int],
        context_tokens: int,
        adapter: AdapterUse | None = None,
    ) -> None:
        super().__init__([*request.prompt_ids, *request.output_ids])
        sampling = request.sampling
        self.request = request
        self.rank = rank
        if request.media:  # whose tokens stand for their contents in the tree
            self.keys = list(self.tokens)
            for medium in request.media:
                self.keys[medium.at : medium.end] = [_of_medium(medium)] * medium.tokens
        self.adapter = -1 if adapter is None else adapter.slot
        """Its adapter's slot."""
        if adapter is not None and self.tokens:  # what an adapter has computed begins like nobody else's in the tree
            if self.keys is self.tokens:
                self.keys = list(self.tokens)
            self.keys[0] += adapter.number << _NUMBER_SHIFT
        self.axes: npt.NDArray[np.int32] | None = None
        """[3, prompt tokens] where these lie along the axes of pictures, from the first time that somebody asked."""
        self.prompt_tokens = len(request.prompt_ids)
        self.longest = min(self.prompt_tokens + sampling.max_tokens, context_tokens)
        """Tokens, prompt included, at which it ends with LENGTH."""
        self.ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_token_ids)
        """Tokens that end it with STOP."""
        self.min_tokens = sampling.min_tokens
        self.state = State.WAITING
        self.state_slot = self.state_begin = -1
        """Slots of its own recurrent state, and of the one that it goes on from (engine/states.py)."""
        self.fork = 0
        """So many of its tokens begin like something in the tree."""
        self.last_snapshot: Node | None = None
        """Of its output: replaced by the next one."""
        self.in_steps = 0
        """In so many plans that are not committed yet."""
        self.due = 0
        """So many of them make its next tokens, which nobody has seen."""
        self.planned = 0
        """So many of its tokens, seen or not, are in the cache once these have run."""
        self.writings: tuple[tuple[int, int], ...] = ()
        """Where the last of them writes its recurrent state (engine/states.py)."""
        self.cancelled = False
        self.lookup: PromptLookup | None = None
        """Where its next tokens may be found, from the first time that somebody looked."""
        self.cached_tokens: int | None = None
        """Prompt tokens found in the cache when it was first admitted."""
        self.first_chunk_due = not request.output_ids
        self.prompt_logprobs_due = sampling.prompt_logprobs is not None and not request.output_ids
        self.prompt_logprobs: list[TokenLogprobs] = []

    @property
    def reach(self) -> int:
        """The position that its next piece begins at."""
        return self.planned if self.in_steps else self.computed

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def prefilling(self) -> bool:
        return self.state is State.PREFILL

    def extend(self, made: list[int]) -> None:
        """The next output tokens."""
        self.tokens += made
        if self.keys is not self.tokens:
            self.keys += made

    def become(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.request.request_id}: {self.state} -> {state}"
        self.state = state


def _of_medium(medium: Medium) -> int:
    """No token's id, and different for different pictures or sounds."""
    return -1 - int.from_bytes(medium.digest, "little")
