"""Seconds of a recording written down in a second: our worker and faster-whisper turn by turn, on the same weights:

    python benchmarks/transcribe.py WHISPER_FOLDER FILE [TURNS]

WHISPER_FOLDER is CTranslate2's (`tokenworks models pull whisper-tiny-en`). Both greedy, both on two threads, from the
file to the text; the best of the turns. Ours also with its float16 weights rounded (`dtype: bfloat16`). faster-whisper,
in float32 and in int8, is to be installed beside, and runs in a process of its own: its text must be ours.
"""

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from tokenworks.config import EngineSettings
from tokenworks.engine.engine import Engine
from tokenworks.fleet.load import load
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.gateway.serving import Hearing, TextModel
from tokenworks.gateway.transcribe import Transcriber, Wish
from tokenworks.models.speech.mel import RATE, log_mel
from tokenworks.models.speech.recording import open_recording
from tokenworks.models.speech.vocabulary import open_speech_vocabulary
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.messages import Generate, TokenChunk
from tokenworks.telemetry.metrics import Metrics

THREADS = 2


class InProcess:
    """A pool of one engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def generate(self, model: str, request: Generate) -> AsyncGenerator[TokenChunk, None]:
        self._engine.add(request, time.monotonic())
        while self._engine.busy:
            for chunk in self._engine.step(time.monotonic()).chunks:
                yield chunk


class Theirs:
    """faster-whisper, in the process that makes it."""

    models: ClassVar[dict[str, Any]] = {}
    """By the type of its numbers."""

    @classmethod
    def once(cls, folder: str, file: str, numbers: str) -> tuple[float, str]:
        os.environ["OMP_NUM_THREADS"] = str(THREADS)
        from faster_whisper import WhisperModel

        if numbers not in cls.models:
            cls.models[numbers] = WhisperModel(folder, device="cpu", compute_type=numbers, cpu_threads=THREADS)
        since = time.perf_counter()
        text = "".join(segment.text for segment in cls.models[numbers].transcribe(file, beam_size=1)[0])
        return time.perf_counter() - since, text


class Ours:
    """Our worker, in this process."""

    def __init__(self, folder: Path, data: bytes, dtype: Literal["auto", "bfloat16"]) -> None:
        settings = EngineSettings(threads=THREADS, dtype=dtype)
        engine, self._ready, _ = load(WorkerSettings(path=str(folder), engine=settings), {})
        assert isinstance(engine, Engine)
        tokenizer = load_tokenizer(folder)
        self._model = TextModel("whisper", tokenizer, self._ready, None)
        words = open_speech_vocabulary(folder, tokenizer.tokenizer, self._ready.vocabulary)
        self._model.hearing = Hearing(words, self._ready.heard_tokens, self._ready.heard_tones)
        self._serving = SimpleNamespace(pool=InProcess(engine), metrics=Metrics())
        self._data = data

    async def once(self, turn: int) -> tuple[float, str]:
        since = time.perf_counter()
        mels = log_mel(open_recording(self._data, "file"), self._ready.heard_tones)
        mels[0, 0] += 1e-3 * turn  # a sound of its own: what was heard before would be found again
        segments = Transcriber(self._serving, self._model, mels, Wish()).segments()  # type: ignore[arg-type]
        text = "".join([segment.text async for segment in segments])
        return time.perf_counter() - since, text


def main() -> None:
    folder, file = Path(sys.argv[1]), Path(sys.argv[2])
    turns = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    data = file.read_bytes()
    seconds = len(open_recording(data, "file")) / RATE
    ours = {"ours": Ours(folder, data, "auto"), "ours, bfloat16": Ours(folder, data, "bfloat16")}
    best: dict[str, float] = {}
    texts: dict[str, str] = {}
    with multiprocessing.get_context("spawn").Pool(1) as other:
        for turn in range(turns + 1):  # the first one warms up
            for name in (*ours, "float32", "int8"):
                worker = ours.get(name)
                of_name = (str(folder), str(file), name)
                spent, texts[name] = asyncio.run(worker.once(turn)) if worker else other.apply(Theirs.once, of_name)
                if turn:
                    best[name] = min(best.get(name, spent), spent)
    for name, spent in best.items():
        who = name if name in ours else f"faster-whisper, {name}"
        times, same = spent / best["ours"], texts[name] == texts["ours"]
        print(f"{who:23} {seconds / spent:5.1f} times as fast as speech, {times:.2f} of our time, same text: {same}")


if __name__ == "__main__":
    main()
