"""One worker's mind: scheduler, runner, sampler and grammars tied together. No sockets, no clock: time is given."""

from collections.abc import Callable
from concurrent.futures import Future, wait

from msgspec.structs import replace

from tokenworks.engine.adapters import AdapterSlots
from tokenworks.engine.constrain import GrammarCompiler, Matcher
from tokenworks.engine.draft import DraftModel
from tokenworks.engine.features import MediaEncoder
from tokenworks.engine.multi_token import MultiToken
from tokenworks.engine.plan import StepPlan, StepResult
from tokenworks.engine.runner import Runner, Step
from tokenworks.engine.sampler import Sampler
from tokenworks.engine.scheduler import Scheduler
from tokenworks.engine.sequence import AdapterUse
from tokenworks.engine.speculate import Speculator
from tokenworks.kernels.backend import Executable, Limits
from tokenworks.protocol.errors import TokenworksError
from tokenworks.protocol.messages import Adapter, EngineStats, Finish, Generate, StepDone, TokenChunk

GRAMMAR_WAIT_S = 0.01
"""With nothing else to do, a step waits so long for a grammar, then returns, so that its caller can hear messages."""


class Engine:
    """`add` requests, call `step` while `busy`; every request ends once, in a chunk with `finish`.

    Where the executable runs ahead, `step` begins the next step and then tells what the last one made: stops,
    cancellations and arrivals take effect one step later, and the device never waits for what is decided here.

    What is wrong with one request ends that one with FAILED; an exception from `step` means that the worker is broken.
    """

    def __init__(
        self,
        executable: Executable,
        limits: Limits,
        *,
        eos_token_ids: frozenset[int],
        context_tokens: int,
        vocabulary: int,
        tokenizer_json: Callable[[], str],
        speculate: bool = True,
        draft: DraftModel | MultiToken | None = None,
        encoder: MediaEncoder | None = None,
        adapters: AdapterSlots | None = None,
    ) -> None:
        """`tokenizer_json` gives the text of the model's tokenizer.json; called once, when the first grammar comes.
        `speculate`: run guesses of the next tokens where they pay, those of `draft` too if there is one: another model,
        or `executable`'s own sequel."""
        self.on_begin: Callable[[tuple[str, ...]], None] = lambda request_ids: None
        """Called with the requests that are started on, before anything of theirs is computed."""
        self._executable = executable
        self._vocabulary = vocabulary
        self._step_tokens = limits.step_tokens
        self._draft_room = min(limits.step_tokens, limits.logit_rows)
        self._speculator = Speculator(limits.step_tokens, draft) if speculate else None
        self._multi_token = draft if isinstance(draft, MultiToken) else None
        self._scheduler = Scheduler(
            limits,
            eos_token_ids=eos_token_ids,
            context_tokens=context_tokens,
            speculator=self._speculator,
            encoder=encoder,
        )
        self._encoder = encoder
        self._sampler = Sampler(executable, limits.sequences, eos_token_ids)
        self._runner = Runner(executable, limits.block_tokens, self._sampler, encoder)
        self._grammars = GrammarCompiler(tokenizer_json, eos_token_ids, vocabulary)
        self._compiling: dict[str, tuple[Generate, float, Future[Matcher]]] = {}
        """Requests that wait for their grammar, with the time they came."""
        self._adapters = adapters
        self._held: dict[str, Adapter] = {}
        """Of the requests under way, by id."""
        self._without_slot: dict[str, tuple[Generate, float]] = {}
        """Requests that wait for a slot for their adapter, in order of arrival, with the time they came."""
        self._chunks: list[TokenChunk] = []
        """Endings that the scheduler has no part in, for the next step."""
        self._under_way: Step | None = None
        """Begun, and nobody has looked at its tokens."""
        # A draft model is run over all tokens before it guesses; a layer of the model's own can catch up later.
        self._runs_ahead = executable.runs_ahead and not isinstance(draft, DraftModel)
        self._timed: tuple[int, float] | None = None
        """Tokens of the step that the last call waited for, and when the call began, where the time from there to the
        next one's beginning is what such a step takes."""

    @property
    def busy(self) -> bool:
        """`step` has something to do or to tell."""
        waiting = self._compiling or self._without_slot or self._chunks or self._under_way
        return bool(waiting) or self._scheduler.busy

    def add(self, request: Generate, now_s: float) -> None:
        """Takes a request, or ends it with FAILED at the next step. An id in use is ignored: the first runs on."""
        request_id = request.request_id
        if request_id in self._scheduler or request_id in self._compiling or request_id in self._without_slot:
            return
        error = self._objection(request)
        if error is not None:
            self._end(request_id, Finish.FAILED, error)
        elif request.adapter is not None:
            self._without_slot[request_id] = (request, now_s)
        else:
            self._begin(request, now_s)

    def load_adapter(self, adapter: Adapter) -> str | None:
        """Has the adapter in memory, if there is a slot that nobody uses; what is wrong with it, or None."""
        if self._adapters is None:
            return "this model takes no adapters"
        try:
            if self._adapters.hold(adapter) is not None:
                self._adapters.release(adapter)
        except TokenworksError as error:
            return error.message
        return None

    def drop_adapter(self, adapter: Adapter) -> None:
        """Frees the adapter's memory when the last request that runs with it has ended."""
        if self._adapters is not None:
            self._adapters.drop(adapter)

    def _begin(self, request: Generate, now_s: float) -> None:
        if request.sampling.grammar is not None:
            self.on_begin((request.request_id,))
            compiled = self._grammars.compile(request.sampling.grammar)
            self._compiling[request.request_id] = (request, now_s, compiled)
        else:
            self._open(request, now_s, None)

    def cancel(self, request_id: str) -> None:
        """Ends a request with CANCELLED and frees what it holds by the next step. One that has ended is ignored."""
        if self._without_slot.pop(request_id, None) is not None:
            self._end(request_id, Finish.CANCELLED)
        elif request_id in self._compiling:
            self._compiling.pop(request_id)[2].cancel()
            self._end(request_id, Finish.CANCELLED)
        else:
            self._scheduler.cancel(request_id)

    def step(self, now_s: float) -> StepDone:
        """Runs a step, or begins it, if there is anything to run, and tells what has happened since the last one.

        While the engine is busy, steps should follow each other: it learns from their times what a step costs.
        """
        if self._speculator is not None:
            if self._timed is not None:
                tokens, since_s = self._timed
                self._speculator.observe(tokens, now_s - since_s)
            self._speculator.begin()
        self._find_slots()
        self._take_compiled()
        before, chunks = self._under_way, self._chunks
        self._under_way, self._chunks = None, []
        plan = self._plan(before)
        alone = before is None
        if plan is None:
            chunks += self._finish(before)
            before, plan = None, self._plan(None)
            assert plan is not None, "what was under way is committed"
        if plan.admitted:
            self.on_begin(tuple(sequence.request.request_id for sequence in plan.admitted))
        step = self._runner.begin(plan, before)
        if self._multi_token is not None:
            self._multi_token.ran(plan)
        chunks += self._finish(before)
        if self._can_wait(plan):
            self._runner.draw(step)
            self._under_way = step
            chunks += self._close(self._scheduler.endings())
            waited_for = before.plan if before is not None else None
        else:
            chunks += self._commit(plan, self._runner.look(step))
            waited_for = plan if alone else None
        self._timed = None
        if waited_for is not None and waited_for.decodes_only and self.busy and not plan.missing:
            self._timed = waited_for.tokens, now_s
        if self._encoder is not None and plan.missing:
            self._encoder.work(plan.missing)
        return StepDone(tuple(chunks), self._stats(), plan.tokens / self._step_tokens)

    def _stats(self) -> EngineStats:
        needed, resident = self._executable.expert_reads()
        stats = self._scheduler.stats()
        if not needed:
            return stats
        return replace(
            stats,
            expert_bytes_total=needed,
            expert_bytes_resident_total=resident,
            expert_bytes_kept=self._executable.kept_expert_bytes,
        )

    def _plan(self, before: Step | None) -> StepPlan | None:
        """The next step, with the guesses that are worth running. None: nothing can be said while `before` is under
        way, or it is better not said."""
        if before is not None and self._tempted(before.plan):
            return None
        plan = self._scheduler.plan()
        if plan is None:
            return None
        if self._multi_token is not None:
            self._multi_token.catch_up()
        if before is not None:
            return plan
        room = self._scheduler.room_for_drafts(plan)
        if self._speculator is None or not room:
            return plan
        drafts = self._speculator.choose([piece.sequence for piece in plan.pieces], room)
        return self._scheduler.with_drafts(plan, drafts) if drafts else plan

    def _tempted(self, plan: StepPlan) -> bool:
        """Guesses may be worth more than beginning before the plan's tokens are known."""
        if self._speculator is None or not plan.decodes_only:
            return False
        sequences = [piece.sequence for piece in plan.pieces]
        return self._speculator.tempted(sequences, self._draft_room - len(sequences))

    def _can_wait(self, plan: StepPlan) -> bool:
        """The next step can begin before anybody has looked at what this one makes."""
        return (
            self._runs_ahead
            and bool(plan.pieces)
            and not any(piece.draft or piece.sequence.prompt_logprobs_due for piece in plan.pieces)
        )

    def _finish(self, step: Step | None) -> list[TokenChunk]:
        """Of a step that was under way."""
        return [] if step is None else self._commit(step.plan, self._runner.finish(step))

    def _commit(self, plan: StepPlan, result: StepResult) -> list[TokenChunk]:
        return self._close(self._scheduler.commit(plan, result))

    def _close(self, chunks: list[TokenChunk]) -> list[TokenChunk]:
        """Lets go of the requests that end."""
        for chunk in chunks:
            if chunk.finish is not None:
                self._sampler.close(chunk.request_id)
                self._let_go(chunk.request_id)
        return chunks

    def _objection(self, request: Generate) -> str | None:
        """What makes a request impossible, whatever else is going on."""
        sampling = request.sampling
        for what, ids in (
            ("the prompt", (*request.prompt_ids, *request.output_ids)),
            ("logit_bias", tuple(sampling.logit_bias)),
            ("stop_token_ids", sampling.stop_token_ids),
        ):
            if ids and not 0 <= min(ids) <= max(ids) < self._vocabulary:
                bad = next(token for token in ids if not 0 <= token < self._vocabulary)
                return f"{what}: token id {bad} is not in the model's vocabulary of {self._vocabulary}"
        if request.adapter is not None and self._adapters is None:
            return "this model takes no adapters"
        if self._encoder is None:
            return "this model reads text only" if request.media else None
        if request.media and sampling.prompt_logprobs is not None:
            return "log-probabilities of a prompt with pictures or sounds cannot be had"
        return self._encoder.objection(request)

    def _open(self, request: Generate, now_s: float, matcher: Matcher | None) -> None:
        try:
            complete = self._sampler.open(request, matcher)
        except TokenworksError as error:
            self._end(request.request_id, Finish.FAILED, error.message)
            return
        if complete:
            self._sampler.close(request.request_id)
            self._end(request.request_id, Finish.STOP)
        else:
            self._scheduler.add(request, now_s, self._use_of(request))

    def _take_compiled(self) -> None:
        """Starts the requests whose grammar is ready, fails those whose grammar is not one."""
        if not self._compiling:
            return
        if not self._scheduler.busy and not self._chunks:
            wait([compiled for _, _, compiled in self._compiling.values()], GRAMMAR_WAIT_S, "FIRST_COMPLETED")
        for request_id, (request, since_s, compiled) in tuple(self._compiling.items()):
            if compiled.done():
                del self._compiling[request_id]
                error = compiled.exception()
                if error is None:
                    self._open(request, since_s, compiled.result())
                else:
                    message = error.message if isinstance(error, TokenworksError) else f"the grammar failed: {error}"
                    self._end(request_id, Finish.FAILED, message)

    def _find_slots(self) -> None:
        """Begins the requests whose adapters have a slot, or get one; one that gets none does not hold up others."""
        for request_id, (request, since_s) in tuple(self._without_slot.items()):
            assert self._adapters is not None
            assert request.adapter is not None
            try:
                slot = self._adapters.hold(request.adapter)
            except TokenworksError as error:
                del self._without_slot[request_id]
                self._end(request_id, Finish.FAILED, error.message)
                continue
            if slot is not None:
                del self._without_slot[request_id]
                self._held[request_id] = request.adapter
                self._begin(request, since_s)

    def _use_of(self, request: Generate) -> AdapterUse | None:
        if self._adapters is None or request.adapter is None:
            return None
        return AdapterUse(self._adapters.slot(request.adapter), self._adapters.number(request.adapter))

    def _let_go(self, request_id: str) -> None:
        adapter = self._held.pop(request_id, None)
        if adapter is not None and self._adapters is not None:
            self._adapters.release(adapter)

    def _end(self, request_id: str, finish: Finish, error: str | None = None) -> None:
        self._let_go(request_id)
        self._chunks.append(TokenChunk(request_id, finish=finish, error=error))
