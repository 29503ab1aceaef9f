"""The precision audit: what each precision of a model would cost in quality, speed and memory on this machine.

The reference is the model's own weights as its file has them, in float32 arithmetic with a float32 KV cache. Every
candidate is run as it would be served, on the same windows of text, and compared with it token by token. Candidates
are rounded to nearest with searched scales (quantise.py's way without a calibration text), which takes seconds;
`tokenworks quantize --calibrate` loses less.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from tokenworks.kernels.backend import Backend, CacheType
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.kvcache.layout import token_bytes
from tokenworks.quant.audit_types import STORED, Audit, Candidate
from tokenworks.quant.forward import Float32, Int32
from tokenworks.quant.grid import grid_bits, stored_as
from tokenworks.quant.measure import Divergence, Tally, log_softmax
from tokenworks.quant.recipe import Recipe, read_recipe
from tokenworks.quant.recommend import recommend
from tokenworks.quant.rounding import round_to_nearest
from tokenworks.quant.schemes import SchemeName
from tokenworks.quant.served import STEP_TOKENS, Served
from tokenworks.quant.tasks import Marks, Questions, alike_until, answer
from tokenworks.quant.tensors import fits, kernel_tensor

Progress = Callable[[int, int, str], None]
"""Called with the number of finished steps, that of all, and the name of the one that comes next."""

SCHEMES: tuple[SchemeName, ...] = get_args(SchemeName)
_BITS: dict[SchemeName, int] = {"int8": 8, "fp8": 8, "mxfp4": 4, "nvfp4": 4}
GREEDY_TOKENS = 32
_STAGES = ("rounding the weights", "the weights in float32", "as served", "with an 8-bit KV cache")


@dataclass(frozen=True, slots=True)
class Text:
    """What a model is measured on."""

    windows: Int32
    """[count, length], for perplexity and divergence."""
    prompts: Int32
    """[count, length], to be continued greedily by GREEDY_TOKENS."""
    questions: Questions


def audit(
    name: str,
    program: Program,
    weights: Mapping[str, Tensor],
    text: Text,
    backend: Backend,
    *,
    threads: int,
    max_loss: float,
    progress: Progress,
) -> Audit:
    """`program` is a decoder's. `max_loss` is the perplexity, as a share of the reference's, that a recommended
    precision may lose."""
    return _Job(program, weights, text, backend, threads, progress).run(name, max_loss)


class _Steps:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def begin(self, what: str) -> None:
        self._progress(self._done, self._total, what)
        self._done += 1


class _Abilities(NamedTuple):
    marks: Marks
    greedy: Int32


class _Job:
    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        text: Text,
        backend: Backend,
        threads: int,
        progress: Progress,
    ) -> None:
        self._program, self._weights, self._text = program, weights, text
        self._backend, self._threads = backend, threads
        self._following = text.windows[:, 1:]
        self._prompt = np.resize(text.windows.ravel(), STEP_TOKENS)
        names = Recipe((("*", "keep"),)).of(program)
        self._matrices = {name: weights[name] for name in names}
        self._layers = [tensor for name, tensor in self._matrices.items() if name.startswith("layers.")]
        self._schemes = [scheme for scheme in SCHEMES if any(fits(scheme, each.shape[1]) for each in self._layers)]
        self._steps = _Steps(progress, 1 + (1 + len(self._schemes)) * len(_STAGES))

    def run(self, name: str, max_loss: float) -> Audit:
        self._steps.begin("reference: float32")
        reference = self._served(self._widened(self._weights), "float32")
        count, length = self._following.shape
        vocabulary = self._program.result.width
        # On disk, where the system may put it if memory is short: 400 MB for 2,000 tokens of a 50,000-word vocabulary.
        with tempfile.TemporaryFile() as file:
            kept = np.memmap(file, np.float32, "w+", shape=(count, length, vocabulary))
            for numbers, rows in reference.logits(self._text.windows, 0):
                kept[numbers] = log_softmax(rows).reshape(len(numbers), length, vocabulary)
            theirs = self._abilities(reference)
            del reference  # its float32 weights
            bits = grid_bits(self._layers)
            candidates = [self._candidate(scheme, kept, theirs, bits) for scheme in (None, *self._schemes)]
        recommended, reasons = recommend(candidates, max_loss)
        return Audit(
            name,
            count * length,
            len(self._text.prompts),
            candidates[0].served.reference_perplexity,
            theirs.marks,
            bits,
            token_bytes(self._program.cache_layers, "float16"),
            token_bytes(self._program.cache_layers, "int8"),
            tuple(candidates),
            max_loss,
            recommended,
            reasons,
        )

    def _candidate(
        self, scheme: SchemeName | None, reference: Float32, theirs: _Abilities, bits: int | None
    ) -> Candidate:
        name = scheme or STORED
        stages = iter(_STAGES)
        self._steps.begin(f"{name}: {next(stages)}")
        weights = self._rounded(scheme) if scheme else self._weights
        self._steps.begin(f"{name}: {next(stages)}")
        weights_only = self._divergence(self._served(self._widened(weights), "float32"), reference)
        self._steps.begin(f"{name}: {next(stages)}")
        served = self._served(weights, "float16")
        divergence = self._divergence(served, reference)
        ours = self._abilities(served)
        prefill_tok_s, decode_tok_s = served.prefill_tok_s(self._prompt), served.decode_tok_s(self._prompt)
        self._steps.begin(f"{name}: {next(stages)}")
        small_cache = self._served(weights, "int8")
        return Candidate(
            precision=name,
            weights=stored_as({each: weights[each] for each in self._matrices}),
            weight_bytes=served.weight_bytes,
            served=divergence,
            weights_only=weights_only,
            kv_int8=self._divergence(small_cache, reference),
            marks=ours.marks,
            same_answers=ours.marks.same(theirs.marks),
            greedy_alike=alike_until(ours.greedy, theirs.greedy),
            prefill_tok_s=prefill_tok_s,
            decode_tok_s=decode_tok_s,
            kv_int8_decode_tok_s=small_cache.decode_tok_s(self._prompt),
            caution=_caution(scheme, bits, self._layers),
        )

    def _served(self, weights: Mapping[str, Tensor], cache: CacheType) -> Served:
        return Served(self._backend, self._program, weights, cache, self._threads)

    def _abilities(self, served: Served) -> _Abilities:
        marks = answer(self._text.questions, served.logits)
        return _Abilities(marks, served.greedy(self._text.prompts, GREEDY_TOKENS))

    def _divergence(self, served: Served, reference: Float32) -> Divergence:
        tally = Tally()
        for numbers, rows in served.logits(self._text.windows, 0):
            theirs = reference[numbers].reshape(rows.shape)
            tally.add(theirs, log_softmax(rows), self._following[numbers].ravel())
        return tally.result()

    def _rounded(self, scheme: SchemeName) -> Mapping[str, Tensor]:
        """By the recipe that `tokenworks quantize` has by default; weights that are no whole blocks stay."""
        chosen = read_recipe("standard", scheme).of(self._program)
        return {
            **self._weights,
            **{
                name: kernel_tensor(name, round_to_nearest(choice, dequantise(self._weights[name])))
                for name, choice in chosen.items()
                if choice != "keep" and fits(choice, self._weights[name].shape[1])
            },
        }

    def _widened(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {**weights, **{name: _float32(weights[name]) for name in self._matrices}}


def _float32(tensor: Tensor) -> Tensor:
    numbers = np.ascontiguousarray(dequantise(tensor))
    return Tensor(tensor.name, "F32", tensor.shape, numbers.view(np.uint8).reshape(-1))


def _caution(scheme: SchemeName | None, bits: int | None, layers: Sequence[Tensor]) -> str | None:
    """Why figures against these stored weights flatter `scheme` (None: as stored)."""
    if bits is None:
        return None
    lies = f"the stored weights lie on a {bits}-bit grid already ({stored_as({each.name: each for each in layers})})"
    if scheme is None:
        return f"{lies}: what that cost against the weights they were made from is in none of these figures"
    if _BITS[scheme] > bits:
        return f"{lies}, which {scheme} keeps almost as it is: on weights of 16 bits it would lose more"
    return f"{lies}, which {scheme} rounds a second time: these figures are not those of weights of 16 bits"
