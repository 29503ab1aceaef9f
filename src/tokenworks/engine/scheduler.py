"""Decides what runs in each step. A pure state machine: no clock, no arrays of numbers, no model.

    add, cancel  ->  plan() -> StepPlan  ->  (someone runs it)  ->  commit(plan, result) -> what to tell the caller
                            `-> with_drafts(plan, guesses) ->'

The rules, in the order in which `plan` applies them:
1. Every decoding sequence runs its last token. When blocks are short, the sequence of the last rank gives up its own:
   it goes back to waiting with its output, and is computed again later (as far as the prefix tree forgets it).
2. What is left of `step_tokens` goes to prefills in order of rank, in chunks, so a long prompt delays the decoding ones
   by no more than one step's budget.
3. Waiting sequences are admitted by rank while there is budget, a slot, and room for all their tokens. One that does
   not fit holds up those after it, so large requests are not starved by small ones. One whose next block is just being
   computed by another sequence waits for that block, and lets others pass.
4. A step may be planned while the last one runs and nobody has seen its tokens: who may go on runs the token that is
   due, and if that ended its text, what was run behind it counts for nothing. What would take blocks from others waits
   until the last step is committed (`plan` gives None).
5. A step without prefills may run guesses of the decoding sequences' next tokens (engine/speculate.py) in the tokens,
   rows of logits and blocks that are left: `with_drafts`. What of it proves wrong is taken back: nobody is worse off.

A prompt runs up to its first picture or sound that is not encoded yet, and waits there (engine/pictures.py, sounds.py).
Where a picture's tokens see each other, they run in one step.

Rank: by arrival, moved back by PRIORITY_S for each level of priority. So lower priorities go first, and yet nobody
waits for ever: a request is overtaken only by those that arrive within a minute per level after it.
"""

from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from operator import attrgetter

from tokenworks.engine.features import MediaEncoder
from tokenworks.engine.plan import Piece, StepPlan, StepResult
from tokenworks.engine.sequence import AdapterUse, Sequence, State
from tokenworks.engine.space import CacheSpace
from tokenworks.engine.speculate import Speculator
from tokenworks.engine.states import States
from tokenworks.engine.tell import chunk_of
from tokenworks.kernels.backend import Limits
from tokenworks.protocol.messages import EngineStats, Finish, Generate, Medium, TokenChunk

PRIORITY_S = 60.0
_rank = attrgetter("rank")


class Scheduler:
    """Continuous batching with chunked prefill over a paged cache. Every request added ends exactly once."""

    def __init__(
        self,
        limits: Limits,
        *,
        eos_token_ids: frozenset[int],
        context_tokens: int,
        speculator: Speculator | None,
        encoder: MediaEncoder | None = None,
    ) -> None:
        self._limits = limits
        self._speculator = speculator
        self._encoder = encoder
        self._missing: list[Medium] = []
        self._eos_token_ids = eos_token_ids
        self._context_tokens = min(context_tokens, limits.blocks * limits.block_tokens)
        # Any running sequence may decode, so each must be sure of a token and a row of logits in every step.
        slots = min(limits.sequences, limits.step_tokens, limits.logit_rows, limits.state_slots or limits.sequences)
        self._slots = slots
        self._states = States(limits.state_slots, limits.block_tokens) if limits.state_slots else None
        self._space = CacheSpace(limits.blocks, limits.block_tokens, slots, self._context_tokens)
        if self._states is not None:
            forgotten = self._states.snapshots.drop
            self._space = CacheSpace(limits.blocks, limits.block_tokens, slots, self._context_tokens, forgotten)
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        """Both in order of rank."""
        self._events: list[TokenChunk] = []
        """Endings that no step made, to be told."""
        self._under_way = 0
        """Plans that are not committed yet."""
        self._arrivals = 0
        self._prompt_tokens = self._hit_tokens = self._output_tokens = self._preemptions = self._steps = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    @property
    def busy(self) -> bool:
        """There is something to run, or to tell."""
        return bool(self._sequences or self._events)

    def add(self, request: Generate, now_s: float, adapter: AdapterUse | None = None) -> None:
        """Queues a request. One that cannot run, or has nothing left to do, ends at once (told by the next commit)."""
        assert request.request_id not in self._sequences
        self._arrivals += 1
        rank = (now_s + request.priority * PRIORITY_S, self._arrivals)
        sequence = Sequence(request, rank, self._eos_token_ids, self._context_tokens, adapter)
        self._sequences[request.request_id] = sequence
        if not request.prompt_ids:
            self._end(sequence, Finish.FAILED, error="the prompt has no tokens")
        elif sequence.longest < sequence.prompt_tokens + min(1, request.sampling.max_tokens):
            error = f"the prompt has {sequence.prompt_tokens} tokens; there is room for {self._context_tokens}"
            self._end(sequence, Finish.FAILED, error=f"{error}, with at least one of output")
        elif len(sequence.tokens) >= sequence.longest and not sequence.prompt_logprobs_due:
            self._end(sequence, Finish.LENGTH)
        else:
            insort(self._waiting, sequence, key=_rank)

    def cancel(self, request_id: str) -> None:
        """Ends a request: now, or if it is in a step under way, when that is committed. Unknown ones have ended."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return
        if sequence.in_steps:
            sequence.cancelled = True
        else:
            self._end(sequence, Finish.CANCELLED)

    def plan(self) -> StepPlan | None:
        """The next step. At most one other may be under way, without drafts: it is committed first. None: that has to
        be done before anything can be planned, since blocks are short."""
        ahead = self._under_way
        if ahead and self._space.available < len(self._running):
            return None
        self._missing = []
        pieces: list[Piece] = []
        prefills: list[Sequence] = []
        admitted: list[Sequence] = []
        preempted: list[Sequence] = []
        size = self._limits.block_tokens
        for sequence in tuple(self._running):
            if sequence.state is State.DECODE or sequence.due:
                if sequence.due and len(sequence.tokens) + 1 >= sequence.longest:
                    continue
                start = sequence.reach
                if start == sequence.blocks * size and not self._make_room(sequence, start + 1, preempted):
                    continue
                pieces.append(self._piece(sequence, start, start + 1, start, True))
            elif sequence.state is State.PREFILL:
                prefills.append(sequence)
        tokens = decoding = len(pieces)
        rows = self._limits.logit_rows - tokens
        for sequence in prefills:
            if sequence.state is State.PREFILL and tokens < self._limits.step_tokens:
                tokens, rows = self._prefill(sequence, tokens, rows, pieces, preempted)
        while tokens < self._limits.step_tokens and (newcomer := self._admit()) is not None:
            admitted.append(newcomer)
            tokens, rows = self._prefill(newcomer, tokens, rows, pieces, preempted)
        self._under_way += 1
        return StepPlan(
            tuple(pieces),
            tokens,
            len(pieces) == decoding > 0,
            tuple(admitted),
            tuple(preempted),
            self._space.tables,
            tuple(self._missing),
        )

    def room_for_drafts(self, plan: StepPlan) -> int:
        """How many guesses the step could run."""
        if not plan.decodes_only:
            return 0
        room = min(self._limits.step_tokens, self._limits.logit_rows) - plan.tokens
        return room if self._states is None else min(room, self._states.room_for_guesses())

    def with_drafts(self, plan: StepPlan, drafts: Iterable[tuple[int, SequenceOf[int]]]) -> StepPlan:
        """The plan with guesses behind the pieces, as far as there are blocks: (index, the tokens that may follow)."""
        pieces, tokens = list(plan.pieces), plan.tokens
        for index, draft in drafts:
            sequence, _, end, *_, writings, _ = pieces[index]
            states, count = self._states, len(draft)
            if states is not None:
                count = min(count, states.room_behind(sequence, writings))
            count = self._space.grow(sequence, end + count) - end
            if count:
                if states is not None:
                    writings = states.with_guesses(sequence, writings, count)
                pieces[index] = pieces[index]._replace(end=end + count, draft=tuple(draft[:count]), writings=writings)
                tokens += count
        return replace(plan, pieces=tuple(pieces), tokens=tokens)

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenChunk]:
        """Takes in what the step made; returns what to tell the callers, in no particular order between requests."""
        events = self.endings()
        self._under_way -= 1
        size, states = self._limits.block_tokens, self._states
        tokens = iter(result.tokens)
        for index, piece in enumerate(plan.pieces):
            sequence, _, end, _, samples, draft, writings, _ = piece
            made = next(tokens) if samples else []
            if sequence.state is State.ENDED:  # in the step before, when this one was under way
                continue
            sequence.in_steps -= 1
            sequence.due -= samples
            if states is not None and (sequence.cancelled or index in result.failed):
                states.discard(sequence, writings)
            if sequence.cancelled:
                self._end(sequence, Finish.CANCELLED)
                continue
            if index in result.failed:  # before its blocks are shared: what they hold is not to be trusted
                self._end(sequence, Finish.FAILED, error=result.failed[index])
                continue
            if samples and sequence.state is State.PREFILL:
                sequence.become(State.DECODE)
            if sequence.request.sampling.max_tokens:
                sequence.extend(made)
            sequence.computed = end
            if draft:
                sequence.computed -= len(draft) + 1 - len(made)
                self._space.trim(sequence)
            if self._speculator is not None and samples:
                self._speculator.made(sequence, len(draft), len(made))
            if sequence.computed >= (len(sequence.nodes) + 1) * size:
                self._space.share(sequence)
            if states is not None:
                states.keep(sequence, writings)
            if index in result.prompt_logprobs:
                sequence.prompt_logprobs += result.prompt_logprobs[index]
            if samples:
                chunk = chunk_of(sequence, made, result, index)
                self._output_tokens += len(chunk.token_ids)
                events.append(chunk)
                if chunk.finish is not None:
                    self._forget(sequence)
        self._steps += bool(plan.pieces)
        return events + self.endings()

    def endings(self) -> list[TokenChunk]:
        """Those that no step made, and that have not been told."""
        events, self._events = self._events, []
        return events

    def stats(self) -> EngineStats:
        pool, tree, states = self._space.pool, self._space.tree, self._states
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_used=pool.total - pool.free - tree.idle,
            kv_blocks_cached=tree.idle,
            kv_blocks_total=pool.total,
            state_slots_used=states.used if states else 0,
            state_slots_cached=states.cached if states else 0,
            state_slots_total=states.snapshots.pool.total if states else 0,
            prompt_tokens_total=self._prompt_tokens,
            prefix_hit_tokens_total=self._hit_tokens,
            output_tokens_total=self._output_tokens,
            preemptions_total=self._preemptions,
            steps_total=self._steps,
            pictures_encoded_total=self._encoder.encoded if self._encoder else 0,
            draft_tokens_total=self._speculator.drafted if self._speculator else 0,
            draft_tokens_accepted_total=self._speculator.accepted if self._speculator else 0,
        )

    def _admit(self) -> Sequence | None:
        """The first waiting sequence that may run now gets its slot."""
        if len(self._running) == self._slots:
            return None
        for index, sequence in enumerate(self._waiting[: self._slots]):
            if not sequence.prompt_logprobs_due:  # these need the logits of every prompt token: all of them must run
                self._space.look_up(sequence)
                if self._states is not None:
                    self._states.look_up(sequence)
            if self._comes_soon(sequence):
                continue
            # Those who run may each need a block soon, and prefills have room promised for the rest of their tokens.
            promised = sum(
                len(other.tokens) // self._limits.block_tokens + 1 - other.blocks if other.state is State.PREFILL else 1
                for other in self._running
            )
            if self._space.shortage(sequence) + promised > 0 and self._running:
                return None
            if self._states is not None and not self._states.admit(sequence):
                return None
            del self._waiting[index]
            self._start(sequence)
            return sequence
        return None

    def _comes_soon(self, sequence: Sequence) -> bool:
        """What a waiting sequence would have to compute first is being computed for another one."""
        if self._states is None or sequence.prompt_logprobs_due:
            return self._space.comes_soon(sequence)
        return self._states.comes_soon(sequence, self._running)

    def _start(self, sequence: Sequence) -> None:
        sequence.become(State.PREFILL)
        self._space.admit(sequence)
        insort(self._running, sequence, key=_rank)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(sequence.computed, sequence.prompt_tokens)
            self._prompt_tokens += sequence.prompt_tokens
            self._hit_tokens += sequence.cached_tokens

    def _prefill(
        self, sequence: Sequence, tokens: int, rows: int, pieces: list[Piece], preempted: list[Sequence]
    ) -> tuple[int, int]:
        """Plans the next chunk of a prompt; returns the step's tokens so far, and the rows of logits left."""
        start, length = sequence.reach, len(sequence.tokens)
        end = min(length, start + self._limits.step_tokens - tokens)
        if sequence.prompt_logprobs_due:
            end = min(end, start + rows)
        elif end == length and rows == 0:
            end -= 1
        end = self._runnable(sequence, start, end)
        if end <= start:
            return tokens, rows
        least = start + 1
        if self._encoder is not None and self._encoder.sees_ahead:
            least = max([least, *(medium.end for medium in sequence.request.media if medium.at <= start)])
        room = self._space.grow(sequence, end)
        if room < least and (self._under_way or not self._make_room(sequence, least, preempted)):
            return tokens, rows
        end = self._runnable(sequence, start, min(end, sequence.blocks * self._limits.block_tokens))
        samples = end == length
        logits_from = start if sequence.prompt_logprobs_due else end - samples
        pieces.append(self._piece(sequence, start, end, logits_from, samples))
        return tokens + end - start, rows - (end - logits_from)

    def _piece(self, sequence: Sequence, start: int, end: int, logits_from: int, samples: bool) -> Piece:
        """Notes in the sequence that it runs."""
        begin = sequence.state_begin
        if self._states is not None:
            if sequence.in_steps:
                begin = sequence.writings[-1][1]
            sequence.writings = self._states.writings(sequence, end)
        sequence.in_steps += 1
        sequence.due += samples
        sequence.planned = end
        return Piece(sequence, start, end, logits_from, samples, (), sequence.writings, begin)

    def _runnable(self, sequence: Sequence, start: int, end: int) -> int:
        """How far a prompt can run with the pictures and sounds that are there; notes the one that it waits for."""
        if self._encoder is None or not sequence.request.media:
            return end
        end, missing = self._encoder.runnable(sequence.request.media, start, end)
        if missing is not None:
            self._missing.append(missing)
        return end

    def _make_room(self, sequence: Sequence, tokens: int, preempted: list[Sequence]) -> bool:
        """Gets a running sequence blocks for `tokens` tokens, from those of later rank that are not in the step yet.
        While a step is under way there are enough.

        False: there is none, so it has given up its own: the earlier ones go on, and it comes back when there is room.
        """
        while self._space.grow(sequence, tokens) < tokens:
            victim = next(other for other in reversed(self._running) if not other.in_steps)
            self._running.remove(victim)
            self._leave(victim)
            victim.become(State.WAITING)
            if victim.prompt_logprobs_due:
                victim.prompt_logprobs.clear()
            insort(self._waiting, victim, key=_rank)
            preempted.append(victim)
            self._preemptions += 1
            if victim is sequence:
                return False
        return True

    def _end(self, sequence: Sequence, finish: Finish, *, error: str | None = None) -> None:
        """Ends a sequence that made no token in this step."""
        self._events.append(TokenChunk(sequence.request.request_id, finish=finish, error=error))
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        if sequence.slot >= 0:
            self._running.remove(sequence)
            self._leave(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        sequence.become(State.ENDED)
        del self._sequences[sequence.request.request_id]

    def _leave(self, sequence: Sequence) -> None:
        """A running sequence gives up its slot and blocks."""
        if self._speculator is not None:
            self._speculator.left(sequence)
        if self._states is not None:
            if sequence.in_steps:
                self._states.discard(sequence, sequence.writings)
            self._states.release(sequence)
        self._space.release(sequence)
