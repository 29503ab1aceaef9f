"""The whole of `tokenworks quantize`: open, calibrate, round, write; whole or not at all."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import Program
from tokenworks.models.checkpoint import Checkpoint, open_checkpoint
from tokenworks.models.config import DecoderConfig
from tokenworks.models.decoder import decoder_program
from tokenworks.models.parts.attention import Attention
from tokenworks.models.speech.config import SpeechConfig
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.errors import InvalidRequest, ModelError
from tokenworks.quant.calibrate import Progress, quantise
from tokenworks.quant.checkpoints.folder import FolderLayout, write_folder
from tokenworks.quant.checkpoints.gguf import write_gguf
from tokenworks.quant.forward import Int32
from tokenworks.quant.recipe import Choice, Recipe
from tokenworks.quant.rounding import round_to_nearest
from tokenworks.quant.sensitivity import sensitivities, spare
from tokenworks.quant.text import read_texts, windows
from tokenworks.quant.work import Work

Layout = FolderLayout | Literal["gguf"]

CALIBRATION_WINDOWS = 64
CALIBRATION_TOKENS = 256
"""In each window."""
SENSITIVITY_WINDOWS, SENSITIVITY_TOKENS = 8, 64
BLOCK_SCHEMES = ("nvfp4", "mxfp4")
"""Those of 4 bits."""

_COLUMNS = {"nvfp4": 64, "mxfp4": 32, "int8": 32}
"""What a weight's columns must be a multiple of, for the kernels (models/files/quantised.py)."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a run made."""

    path: Path
    """What `serve` takes."""
    size_bytes: int
    quantised: dict[str, str]
    """Format by canonical weight name."""
    calibration_tokens: int
    resumed: bool
    generates: bool
    """Text; an encoder does not."""


def quantise_model(
    source: Path,
    out: Path,
    recipe: Recipe,
    layout: Layout,
    texts: Sequence[Path],
    progress: Progress,
    *,
    spared: float = 0.0,
) -> Written:
    """Quantises the model at `source` into the new folder `out`. Raises ModelError or InvalidRequest.

    Of the weights that are to have 4 bits, a share `spared` gets 8: those that the model is most sensitive to.

    Until it is whole, the work lies in a folder beside `out`, from which the same call goes on if it was interrupted.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest(f"{out} is there already: remove it, or choose another --out.")
    checkpoint = open_checkpoint(source)
    if isinstance(checkpoint.config, SpeechConfig):
        raise ModelError(f"{source}: models that hear cannot be quantised here yet.")
    program = _of_texts(checkpoint)
    choices = recipe.of(program)
    if all(choice == "keep" for choice in choices.values()):
        raise InvalidRequest("The recipe keeps every weight as it is: there is nothing to quantise.")
    for name, choice in choices.items():
        columns, unit = checkpoint.tensors[name].shape[-1], _COLUMNS.get(choice, 1)
        if columns % unit:
            raise InvalidRequest(
                f"{name} has {columns} columns; {choice} is run in multiples of {unit}. Keep it, or give it fp8, by a "
                "recipe."
            )
    tokens = None
    if texts:
        length = min(CALIBRATION_TOKENS, checkpoint.config.context_tokens)
        tokens = windows(read_texts(texts), load_tokenizer(source), count=CALIBRATION_WINDOWS, length=length)
    if spared:
        choices = _spared(checkpoint, program, choices, tokens, layout, spared)
    identity = {
        "source": fingerprint(source),
        "choices": choices,
        "text": "" if tokens is None else hashlib.sha256(tokens.tobytes()).hexdigest(),
    }
    work = Work(part_of(out), identity)
    quantised = quantise(program, checkpoint.tensors, choices, tokens, work, progress)
    whole = work.folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    if layout == "gguf":
        write_gguf(whole / "model.gguf", checkpoint, quantised)
    else:
        write_folder(whole, checkpoint, quantised, layout)
    if out.exists():
        out.rmdir()
    whole.replace(out)
    shutil.rmtree(work.folder)
    return Written(
        out / "model.gguf" if layout == "gguf" else out,
        sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        {name: weight.scheme for name, weight in quantised.items()},
        0 if tokens is None else tokens.size,
        work.resumed,
        checkpoint.config.kind == "generate",
    )


def part_of(out: Path) -> Path:
    """Where the work on `out` lies until it is whole."""
    return out.with_name(out.name + ".part")


def _spared(
    checkpoint: Checkpoint,
    program: Program,
    choices: Mapping[str, Choice],
    tokens: Int32 | None,
    layout: Layout,
    share: float,
) -> dict[str, Choice]:
    """`choices` with int8 for the most sensitive."""
    if tokens is None:
        raise InvalidRequest("--spare finds sensitive weights on the text of --calibrate: give one.")
    if layout == "gguf":
        raise InvalidRequest("--spare makes weights int8, which GGUF files have not: use another --layout.")
    weights = {
        name: dequantise(checkpoint.tensors[name]) for name, choice in choices.items() if choice in BLOCK_SCHEMES
    }
    errors = {name: round_to_nearest(choices[name], weight).dequantise() - weight for name, weight in weights.items()}  # type: ignore[arg-type]
    text = tokens[:: -(-len(tokens) // SENSITIVITY_WINDOWS), :SENSITIVITY_TOKENS]
    costs = sensitivities(program, checkpoint.tensors, errors, text)
    return spare(choices, costs, {name: weight.size for name, weight in weights.items()}, share)


def _of_texts(checkpoint: Checkpoint) -> Program:
    """What the model does with texts: where it sees pictures too, without a place for them. A text's positions are the
    same along all axes."""
    config = checkpoint.config
    if not isinstance(config, DecoderConfig) or config.vision is None:
        return checkpoint.program()
    layers = tuple(
        replace(layer, mixer=replace(layer.mixer, axes=())) if isinstance(layer.mixer, Attention) else layer
        for layer in config.layers
    )
    return decoder_program(replace(config, vision=None, layers=layers))


def fingerprint(source: Path) -> list[list[object]]:
    """Names, sizes and times of the model's files: what changes when they do."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    return [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
