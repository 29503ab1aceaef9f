"""Opens a model for a worker: checkpoint, program, executable, engine; and says where the time went."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokenworks.engine.adapters import AdapterSlots
from tokenworks.engine.draft import DraftModel
from tokenworks.engine.encoder import EncoderEngine
from tokenworks.engine.engine import Engine
from tokenworks.engine.features import MediaEncoder
from tokenworks.engine.multi_token import MultiToken, guess_blocks
from tokenworks.engine.pictures import PictureEncoder
from tokenworks.engine.sounds import SoundEncoder
from tokenworks.fleet.device import capacity, check_ranks, choose_backend, free_mb, rank_backend
from tokenworks.fleet.ranks import Ranks
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.kernels.backend import Backend, Limits
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import Program
from tokenworks.kernels.shard import RankBackend, share_of
from tokenworks.kernels.tensor import Tensor
from tokenworks.kvcache.layout import cache_that_fits, state_bytes
from tokenworks.models.adapters import read_adapter
from tokenworks.models.checkpoint import Checkpoint, open_checkpoint
from tokenworks.models.config import DecoderConfig, EncoderConfig, ModelConfig
from tokenworks.models.encoder import ScoreHead
from tokenworks.models.files.packed_store import PackedPlace, place_of
from tokenworks.models.narrow import in_bfloat16
from tokenworks.models.speech.config import SpeechConfig
from tokenworks.models.text.ends import eos_token_ids
from tokenworks.models.vision.pixels import Pixels
from tokenworks.protocol.clock import now_s
from tokenworks.protocol.errors import ModelError
from tokenworks.protocol.messages import Ready
from tokenworks.telemetry.cores import cores_allowed


def load(
    settings: WorkerSettings, phases_s: dict[str, float]
) -> tuple[Engine | EncoderEngine, Ready, list[Callable[[], None]]]:
    """A model ready to run, and what is left to do when it runs: keeping packed weights for the next start, slow.

    Adds the phases open, pack (map, when an earlier start has packed; on a GPU bind, kernels, weights, graphs), draft
    (if there is one) and engine to `phases_s`. Raises ModelError.
    """
    mark_s = now_s()

    def phase(name: str) -> None:
        nonlocal mark_s
        phases_s[name] = now_s() - mark_s
        mark_s = now_s()

    path = Path(settings.path)
    checkpoint = open_model(path, settings)
    config = checkpoint.config
    drafting = _open_draft(settings, config)
    program = checkpoint.program(guesses=drafting is None and settings.engine.speculation)
    alone, ranks = _backends(settings, checkpoint, program)
    shared = None if ranks is None else RankBackend(alone, 0, ranks.count, ranks.tell)
    backend = shared or alone
    checkpoint, drafting = suited(checkpoint, settings, backend), drafting and suited(drafting, settings, backend)
    running = [shared.share(program, checkpoint.tensors) if shared else (program, checkpoint.tensors)]
    if drafting is not None:
        running.append((drafting.program(), drafting.tensors))
    limits = limits_for(settings, backend, checkpoint, running)
    if ranks is not None:
        limits = _room_of_all(ranks, limits, guesses=program.sequel is not None)
    phase("open")
    place = _place(path, settings)
    own_blocks = guess_blocks(limits.sequences, limits.block_tokens) if program.sequel is not None else 0
    all_blocks = limits.blocks + own_blocks
    if ranks is not None:
        ranks.tell((all_blocks, limits.state_slots))
    executable = backend.compile(program, checkpoint.tensors, replace(limits, blocks=all_blocks), place)
    keep = [executable.keep_packed]
    encoder_bytes = 0
    phase("map" if executable.from_packed_file else "pack")
    if executable.phases_s:
        del phases_s["pack"]
        phases_s |= executable.phases_s
    draft: DraftModel | MultiToken | None = None
    draft_executable = None
    if program.sequel is not None:
        draft = MultiToken(executable, limits, now_s)
    if drafting is not None:
        draft_executable = alone.compile(drafting.program(), drafting.tensors, limits, _place(drafting.path, settings))
        keep.append(draft_executable.keep_packed)
        draft = DraftModel(
            draft_executable,
            limits,
            context_tokens=drafting.config.context_tokens,
            vocabularies=(drafting.config.vocabulary, config.vocabulary),
            clock=now_s,
        )
        phase("draft")
    context_tokens = min(config.context_tokens, settings.engine.context_tokens or config.context_tokens)
    if isinstance(config, SpeechConfig):  # most of it is what it hears
        context_tokens = config.context_tokens
    if settings.adapters and not isinstance(config, DecoderConfig):
        raise ModelError(f"{path} generates no text of prompts, and takes no adapters.")
    engine: Engine | EncoderEngine
    if isinstance(config, EncoderConfig):
        sigmoid = isinstance(config.head, ScoreHead) and config.head.sigmoid
        width = program.result.width
        engine = EncoderEngine(executable, limits, width=width, vocabulary=config.vocabulary, sigmoid=sigmoid)
    else:
        context_tokens = min(context_tokens, limits.blocks * limits.block_tokens)
        encoder, encoder_bytes = _media_encoder(alone, checkpoint, context_tokens, limits.threads)
        adapters = None
        if isinstance(config, DecoderConfig):
            adapters = AdapterSlots(
                executable, settings.engine.adapter_slots, lambda adapter: read_adapter(Path(adapter.path), checkpoint)
            )
            adapters.fill(settings.adapters)
        engine = Engine(
            executable,
            limits,
            eos_token_ids=eos_token_ids(path),
            context_tokens=context_tokens,
            vocabulary=config.vocabulary,
            tokenizer_json=lambda: _tokenizer_json(path),
            speculate=settings.engine.speculation and isinstance(config, DecoderConfig),
            draft=draft,
            encoder=encoder,
            adapters=adapters,
        )
    phase("engine")
    ready = Ready(
        kind=config.kind,
        context_tokens=context_tokens,
        vocabulary=config.vocabulary,
        weight_bytes=executable.weight_bytes + encoder_bytes,
        kv_bytes=executable.cache_bytes,
        draft_weight_bytes=draft_executable.weight_bytes if draft_executable else 0,
        draft_kv_bytes=draft_executable.cache_bytes if draft_executable else 0,
        load_s=phases_s,
        heard_tokens=config.heard if isinstance(config, SpeechConfig) else 0,
        heard_tones=config.bins if isinstance(config, SpeechConfig) else 0,
    )
    return engine, ready, keep


def _backends(settings: WorkerSettings, checkpoint: Checkpoint, program: Program) -> tuple[Backend, Ranks | None]:
    """What runs here: of several ranks the first, with the others on their way. Encoders and draft models run here
    alone."""
    count = settings.engine.tensor_parallel
    if count == 1:
        return choose_backend(settings), None
    check_ranks(settings)
    share_of(program, checkpoint.tensors, 0, count)  # says what is wrong before processes start
    ranks = Ranks(settings)
    return rank_backend(settings, 0, ranks.meeting), ranks


def _room_of_all(ranks: Ranks, limits: Limits, *, guesses: bool) -> Limits:
    """What the rank with the least room takes. `guesses`: of the program that runs (Checkpoint.program)."""
    ranks.tell(guesses)
    rooms = [(limits.blocks, limits.state_slots), *ranks.hear()]
    blocks, state_slots = (min(room) for room in zip(*rooms, strict=True))
    return replace(limits, blocks=blocks, state_slots=state_slots)


def open_model(path: Path, settings: WorkerSettings) -> Checkpoint:
    return open_checkpoint(path, settings.engine.context_tokens)


def suited(checkpoint: Checkpoint, settings: WorkerSettings, backend: Backend) -> Checkpoint:
    """With weights in formats that the backend has products of. A GPU rounds to bfloat16 by itself."""
    if backend.name == "cuda":
        return checkpoint.keeping_fp8()
    return in_bfloat16(checkpoint) if settings.engine.dtype == "bfloat16" else checkpoint


def _place(path: Path, settings: WorkerSettings) -> PackedPlace | None:
    return place_of(path, settings.engine.packed_mb, settings.engine.dtype)


def _open_draft(settings: WorkerSettings, config: ModelConfig) -> Checkpoint | None:
    """The draft model, where one is wanted and can be used: its own recurrent state would keep wrong guesses."""
    if settings.draft_path is None or config.kind != "generate" or not settings.engine.speculation:
        return None
    draft_path = Path(settings.draft_path)
    checkpoint = open_model(draft_path, settings)
    if checkpoint.config.kind != "generate":
        raise ModelError(f"{draft_path} cannot draft: it is an encoder and makes no text.")
    if state_bytes(checkpoint.program().cache_layers):
        raise ModelError(f"{draft_path} cannot draft: it has a recurrent state, which keeps guesses that were wrong.")
    from tokenworks.models.text.vocabulary import (
        check_same_vocabulary,  # the tokenizer's library is loaded only if needed
    )

    check_same_vocabulary(Path(settings.path), draft_path)
    return checkpoint


def _media_encoder(
    backend: Backend, checkpoint: Checkpoint, context_tokens: int, threads: int
) -> tuple[MediaEncoder | None, int]:
    """Of a model that sees or hears, and the bytes of its weights; sized for the largest picture that fits a prompt."""
    config = checkpoint.config
    if isinstance(config, SpeechConfig):
        limits = _encoder_limits(config.heard, threads)
        executable = backend.compile(checkpoint.speech_program(), checkpoint.tensors, limits)
        return SoundEncoder(executable, config), executable.weight_bytes
    vision = config.vision if isinstance(config, DecoderConfig) else None
    if vision is None:
        return None, 0
    vision = replace(vision, most_patches=min(vision.most_patches, context_tokens * vision.merge**2))
    limits = _encoder_limits(vision.most_patches, threads)
    executable = backend.compile(checkpoint.vision_program(vision), checkpoint.tensors, limits)
    table = dequantise(checkpoint.tensors["vision.positions"]) if vision.positions == "bilinear" else None
    pixels = Pixels(vision, table)
    encoder = PictureEncoder(executable, pixels, sees_ahead=vision.sees_ahead, along_axes=vision.along_axes)
    return encoder, executable.weight_bytes


def _encoder_limits(rows: int, threads: int) -> Limits:
    return Limits(
        step_tokens=rows, sequences=1, logit_rows=1, blocks=1, block_tokens=1, cache_dtype="float32", threads=threads
    )


def limits_for(
    settings: WorkerSettings,
    backend: Backend,
    checkpoint: Checkpoint,
    running: Sequence[tuple[Program, Mapping[str, Tensor]]],
) -> Limits:
    """The cache's memory is for all programs that run here; each has as many blocks of it as the others."""
    wanted, config, takes = settings.engine, checkpoint.config, capacity(settings.engine, backend)
    layers = tuple(layer for each, _ in running for layer in each.all_cache_layers)
    step_tokens = takes.step_tokens
    if isinstance(config, EncoderConfig):  # it keeps nothing between steps, so its longest input has to fit into one
        step_tokens = max(step_tokens, config.context_tokens)
    elif (
        isinstance(config, DecoderConfig) and config.vision is not None and config.vision.sees_ahead
    ):  # a picture's tokens have to, beside texts
        step_tokens = max(step_tokens, config.vision.most_patches // config.vision.merge**2 + takes.sequences)
    limits = Limits(
        step_tokens=step_tokens,
        sequences=takes.sequences,
        logit_rows=takes.sequences,
        blocks=1,
        block_tokens=wanted.block_tokens,
        cache_dtype=takes.cache_dtype,
        threads=wanted.threads or cores_allowed(),
    )
    cache_mb = takes.cache_mb
    if cache_mb is None:
        cache_mb = free_mb(limits, running)
    cache = cache_that_fits(cache_mb, layers, takes.cache_dtype, wanted.block_tokens, takes.sequences)
    return replace(limits, blocks=cache.blocks, state_slots=cache.state_slots)


def _tokenizer_json(path: Path) -> str:
    """Loaded anew for the first grammar: most workers never need it, and it is not small."""
    from tokenworks.models.text.tokenizer import load_tokenizer

    return load_tokenizer(path).tokenizer.to_str()
