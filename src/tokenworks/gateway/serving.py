"""What every route shares: the models served, with the text side of each loaded once, and the bound on what is in
flight."""

import asyncio
import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tokenworks.config import ServerSettings
from tokenworks.gateway.detokenise import Vocabulary
from tokenworks.gateway.fetch import Fetcher
from tokenworks.gateway.pictures import Sight
from tokenworks.gateway.tools import ToolFormat, format_of
from tokenworks.protocol.clock import wall_time_s
from tokenworks.protocol.errors import ContextTooLong, InvalidRequest, ModelError, ModelNotFound, Overloaded, WorkerLost
from tokenworks.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from tokenworks.fleet.pool import Pool, PoolModel
    from tokenworks.gateway.responses_store import ResponsesStore
    from tokenworks.kernels.backend import Float32
    from tokenworks.models.speech.vocabulary import SpeechVocabulary
    from tokenworks.models.text.tokenizer import ModelTokenizer, Pair
    from tokenworks.protocol.messages import Ready

_TOKEN_CHARACTERS_MAX = 256
"""No token of the vocabularies we serve is longer: text beyond this per token of context is refused unread."""
_THREAD_FROM_CHARACTERS = 16_384
"""Longer texts are tokenised off the event loop (a few milliseconds each), so that streams go on."""
_THREAD_FROM_TOKENS = 8192
"""The same for token ids that become text."""


_RECORDINGS_AT_ONCE = 2
"""So many sound files are decoded at a time: an hour takes half a gigabyte."""

_DOES = {
    "generate": "generate text",
    "embed": "make embeddings",
    "score": "score texts or make embeddings",
    "transcribe": "write down speech",
}


@dataclass(frozen=True, slots=True)
class Hearing:
    """What a model that writes down speech is given."""

    words: "SpeechVocabulary"
    tokens: int
    """Of a window's sound."""
    tones: int
    """Of the spectrogram."""


class TextModel:
    """One served model's text side, and its worker's limits."""

    def __init__(self, name: str, tokenizer: "ModelTokenizer", ready: "Ready", sight: Sight | None) -> None:
        """`sight`: None for a model that reads text only."""
        self.name = name
        self.sight = sight
        self.tokenizer = tokenizer
        self.kind = ready.kind
        self.context_tokens = ready.context_tokens
        self.vocabulary_tokens = ready.vocabulary
        self.hearing: Hearing | None = None
        """Of a model that writes down speech."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer.tokenizer)

    @cached_property
    def tool_format(self) -> ToolFormat:
        return format_of(self.tokenizer.chat_template or "")

    async def encode(self, text: str, *, special: bool, param: str) -> list[int]:
        """Token ids. Raises ContextTooLong for a text that cannot fit however it is cut."""
        self._refuse_endless(text, param)
        if len(text) < _THREAD_FROM_CHARACTERS:
            return self.tokenizer.encode(text, special=special)
        return await asyncio.to_thread(self.tokenizer.encode, text, special=special)

    async def encode_pair(self, first: str, second: str, *, param: str) -> "Pair":
        """Two texts as one input. Raises as `encode` does."""
        self._refuse_endless(first + second, param)
        if len(first) + len(second) < _THREAD_FROM_CHARACTERS:
            return self.tokenizer.encode_pair(first, second)
        return await asyncio.to_thread(self.tokenizer.encode_pair, first, second)

    def _refuse_endless(self, text: str, param: str) -> None:
        if len(text) > self.context_tokens * _TOKEN_CHARACTERS_MAX:
            at_least = -(-len(text) // _TOKEN_CHARACTERS_MAX)
            raise ContextTooLong(at_least, None, self.context_tokens, param=param)

    async def decode(self, token_ids: list[int]) -> str:
        """Text, special tokens spelled out."""
        if len(token_ids) < _THREAD_FROM_TOKENS:
            return self.tokenizer.decode(token_ids, skip_special=False)
        return await asyncio.to_thread(self.tokenizer.decode, token_ids, skip_special=False)

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """InvalidRequest for an id that the model does not have."""
        if token_ids and max(token_ids) >= self.vocabulary_tokens:
            raise InvalidRequest(
                f"{max(token_ids)} is no token id: they end at {self.vocabulary_tokens - 1}", param=param
            )

    def room(self, prompt_tokens: int, max_tokens: int | None, param: str) -> int:
        """How many tokens may follow: what was asked for, or all that is left. Raises ContextTooLong naming `param`."""
        left = self.context_tokens - prompt_tokens
        if left < (1 if max_tokens is None else max_tokens):
            raise ContextTooLong(prompt_tokens, max_tokens, self.context_tokens, param=param)
        return left if max_tokens is None else max_tokens


class Serving:
    """The state behind the routes."""

    def __init__(
        self, pool: "Pool", models: "Sequence[PoolModel]", settings: ServerSettings, store: "ResponsesStore"
    ) -> None:
        self.pool = pool
        self.models = {model.name: model for model in models}
        self.store = store
        self.max_body_bytes = settings.max_body_mb * 2**20
        self.max_audio_bytes = settings.max_audio_mb * 2**20
        self.max_waiting = settings.max_waiting
        self.adapters_folder = settings.adapters_folder
        self._fetcher = Fetcher(settings.picture_hosts, self.max_body_bytes)
        self._recordings = asyncio.Semaphore(_RECORDINGS_AT_ONCE)
        self.metrics = Metrics()
        self.created_s = int(wall_time_s())
        self._in_flight = 0
        self._text_models: dict[str, TextModel] = {}
        self._tokenizers: dict[str, asyncio.Task[ModelTokenizer]] = {}

    @property
    def default_model(self) -> str:
        return next(iter(self.models))

    def find(self, name: str) -> "PoolModel":
        """A model, or that of an adapter."""
        adapters = self.pool.adapters
        model = self.models.get(adapters.get(name, name))
        if model is None:
            raise ModelNotFound(name[:200], [*self.models, *adapters])
        return model

    def forget(self, name: str) -> None:
        """What is kept of an adapter's text side: the next of its name may be another model's."""
        self._text_models.pop(name, None)

    def warm(self) -> None:
        """Start loading the tokenizers of the models that start now, while their workers load weights."""
        for model in self.models.values():
            if model.start == "now":
                self._tokenizer_task(model)

    async def started(self) -> "dict[str, Ready]":
        """Waits for every model that starts now; what their workers said. Raises ModelError, WorkerLost."""
        result = {}
        for model in self.models.values():
            if model.start == "now":
                result[model.name] = await self.pool.ready(model.name)
                await asyncio.shield(self._tokenizer_task(model))
        return result

    def ready(self) -> dict[str, bool]:
        """Model -> its worker and its tokenizer are loaded; models started on demand are left out."""
        phases = {status.name: status.phase for status in self.pool.statuses()}
        return {
            model.name: phases[model.name] == "ready"
            and (task := self._tokenizers.get(model.name)) is not None
            and task.done()
            for model in self.models.values()
            if model.start == "now"
        }

    async def generator(self, name: str) -> TextModel:
        """The text side of a model that generates; starts its worker when that is not done yet."""
        return await self._text_model(name, "generate")

    async def embedder(self, name: str) -> TextModel:
        return await self._text_model(name, "embed")

    async def scorer(self, name: str) -> TextModel:
        """The text side of a model that scores pairs of texts, or makes vectors to compare."""
        return await self._text_model(name, "score", "embed")

    async def transcriber(self, name: str) -> TextModel:
        """The text side of a model that hears."""
        return await self._text_model(name, "transcribe")

    async def any_text_model(self, name: str | None) -> TextModel:
        return await self._text_model(name or self.default_model)

    async def _text_model(self, name: str, *kinds: str) -> TextModel:
        """`kinds`: which will do; none given, any."""
        model = self.find(name)
        tokenizer_task = self._tokenizer_task(model)
        try:
            ready = await self.pool.ready(name)
        except ModelError as error:  # the operator's to mend, not this client's
            raise WorkerLost(error.message) from error
        if kinds and ready.kind not in kinds:
            raise InvalidRequest(f"the model {name!r} does not {_DOES[kinds[0]]}", param="model")
        tokenizer = await asyncio.shield(tokenizer_task)
        known = self._text_models.get(name)
        if known is None:
            known = TextModel(name, tokenizer, ready, self._sight(model, tokenizer))
            if ready.kind == "transcribe":
                from tokenworks.models.speech.vocabulary import open_speech_vocabulary

                folder = Path(model.settings.path)
                words = open_speech_vocabulary(folder, tokenizer.tokenizer, ready.vocabulary)
                known.hearing = Hearing(words, ready.heard_tokens, ready.heard_tones)
            self._text_models[name] = known
        return known

    def _sight(self, model: "PoolModel", tokenizer: "ModelTokenizer") -> Sight | None:
        from tokenworks.models.vision.processors import open_processor

        processor = open_processor(Path(model.settings.path))
        if processor is None:
            return None
        placeholder_id = tokenizer.tokenizer.token_to_id(processor.placeholder)
        if placeholder_id is None:
            raise WorkerLost(f"the tokenizer of {model.name!r} has no token {processor.placeholder!r} for pictures")
        return Sight(processor, placeholder_id, self._fetcher)

    def _tokenizer_task(self, model: "PoolModel") -> "asyncio.Task[ModelTokenizer]":
        task = self._tokenizers.get(model.name)
        if task is None or (task.done() and task.exception() is not None):
            task = self._tokenizers[model.name] = asyncio.create_task(
                asyncio.to_thread(_load_tokenizer, model.settings.path)
            )
            # A failure is told to whoever asks for the tokenizer; when the worker fails at the same files, nobody does.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def heard(self, model: TextModel, file: bytes, param: str) -> "Float32":
        """The spectrogram of a sound file, [frames, tones]. Raises InvalidRequest naming `param`."""
        from tokenworks.models.speech.mel import log_mel
        from tokenworks.models.speech.recording import open_recording

        assert model.hearing is not None
        tones = model.hearing.tones
        async with self._recordings:
            return await asyncio.to_thread(lambda: log_mel(open_recording(file, param), tones))

    def check_possible(self, sequences: int) -> None:
        """InvalidRequest for more sequences than ever run at once."""
        if sequences > self.max_waiting:
            raise InvalidRequest(f"one request may ask for at most {self.max_waiting} sequences (prompts times n)")

    @contextlib.contextmanager
    def admitted(self, sequences: int) -> Iterator[None]:
        """Holds room for so many sequences. Raises InvalidRequest (never possible) or Overloaded (not now)."""
        self.check_possible(sequences)
        if self._in_flight + sequences > self.max_waiting:
            raise Overloaded(f"{self._in_flight} sequences are in flight, the most this server takes; try again soon")
        self._in_flight += sequences
        try:
            yield
        finally:
            self._in_flight -= sequences


def _load_tokenizer(path: str) -> "ModelTokenizer":
    from tokenworks.models.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(path))
    # What loading freed (14 MB for SmolLM2, a fifth of this process) glibc keeps until it is told to give it back.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return tokenizer
