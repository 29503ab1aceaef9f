"""The whole of `tokenworks distil`: open both models, train, write the adapter; whole or not at all."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenworks.kernels.program import Linear
from tokenworks.models.adapters import modules_of, names_of
from tokenworks.models.checkpoint import Checkpoint, open_checkpoint
from tokenworks.models.config import DecoderConfig
from tokenworks.models.decoder import decoder_shapes
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.errors import FactoryError, InvalidRequest
from tokenworks.quant.checkpoints.peft import write_peft
from tokenworks.quant.distil import Progress, distil
from tokenworks.quant.run import fingerprint, part_of
from tokenworks.quant.text import read_texts, windows
from tokenworks.quant.work import Work

WINDOWS, TOKENS = 1200, 256
"""Of text that is read at most, and the length of each."""
HELD_BACK = 25
"""Every so many windows one is not trained on: the adapter is measured there."""


@dataclass(frozen=True, slots=True)
class Written:
    path: Path
    size_bytes: int
    trained_tokens: int
    kl_before: float
    kl_after: float
    """Of the original from the quantised model, without and with the adapter, on text kept back; nats a token."""


def distil_model(
    original: Path, quantised: Path, texts: Sequence[Path], out: Path, rank: int, progress: Progress
) -> Written:
    """Makes the new folder `out`, an adapter for `quantised`. Raises ModelError, InvalidRequest or FactoryError.

    Until it is whole, the work lies in a folder beside `out`, from which the same call goes on if it was interrupted.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest(f"{out} is there already: remove it, or choose another --out.")
    teacher, student = open_checkpoint(original), open_checkpoint(quantised)
    config = _decoder(teacher)
    shapes = decoder_shapes(config)
    _same(teacher, student, shapes)
    names = names_of(student)
    linear = {name for each in student.program().instructions if isinstance(each, Linear) for name in each.weights}
    modules = {
        name: module
        for name, module in modules_of(names, shapes).items()
        if all(weight.startswith("layers.") and weight in linear for weight in module.weights)
    }
    length = min(TOKENS, config.context_tokens)
    text = windows(read_texts(texts), load_tokenizer(original), count=WINDOWS, length=length)
    if len(text) < HELD_BACK:
        raise InvalidRequest(f"The texts make {len(text)} windows of {length} tokens; {HELD_BACK} are needed.")
    kept_back = text[::HELD_BACK]
    lessons = text[[number for number in range(len(text)) if number % HELD_BACK]]
    identity = {
        "distil": rank,
        "models": [fingerprint(original), fingerprint(quantised)],
        "text": hashlib.sha256(text.tobytes()).hexdigest(),
    }
    work = Work(part_of(out), identity)
    chosen = [weight for module in modules.values() for weight in module.weights]
    done = distil(student.program(), teacher.tensors, student.tensors, chosen, rank, lessons, kept_back, work, progress)
    if done.kl_after >= done.kl_before:
        shutil.rmtree(work.folder)
        raise FactoryError(
            f"The adapter brings nothing: KL to the original on text kept back is {done.kl_before:.4f} nats without "
            f"it, {done.kl_after:.4f} with it. Give more text, or text more like the model's work."
        )
    whole = work.folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    write_peft(whole, student, names, modules, done.terms)
    if out.exists():
        out.rmdir()
    whole.replace(out)
    shutil.rmtree(work.folder)
    size = sum(path.stat().st_size for path in out.iterdir())
    return Written(out, size, lessons.size, done.kl_before, done.kl_after)


def _decoder(checkpoint: Checkpoint) -> DecoderConfig:
    if not isinstance(checkpoint.config, DecoderConfig) or checkpoint.config.vision is not None:
        raise InvalidRequest(f"{checkpoint.path}: only models that write text, and see none, can be distilled here.")
    return checkpoint.config


def _same(teacher: Checkpoint, student: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    theirs = decoder_shapes(_decoder(student))
    for name in sorted(shapes.keys() | theirs.keys()):
        if shapes.get(name) != theirs.get(name):
            raise InvalidRequest(
                f"{student.path} is not {teacher.path} in fewer bits: {name} is {_shape(theirs.get(name))} there, "
                f"{_shape(shapes.get(name))} in the original."
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
