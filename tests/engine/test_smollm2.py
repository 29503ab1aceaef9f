"""The engine on real, quantised weights and the real tokenizer."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from drafting import Ticks
from small_model import run, small_model

from tokenworks.engine.draft import DraftModel
from tokenworks.engine.engine import Engine
from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.text.tokenizer import ModelTokenizer, load_tokenizer
from tokenworks.protocol.messages import Finish, Generate
from tokenworks.protocol.sampling import Grammar, Sampling

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face, and you answer in one sentence."


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> ModelTokenizer:
    return load_tokenizer(smollm2)


def sizes(blocks: int) -> Limits:
    return Limits(
        step_tokens=64, sequences=8, logit_rows=8, blocks=blocks, block_tokens=16, cache_dtype="float16", threads=2
    )


@pytest.fixture(scope="module")
def make(smollm2: Path, tokenizer: ModelTokenizer) -> Callable[..., Engine]:
    checkpoint = open_checkpoint(smollm2)
    program = checkpoint.program()

    def engine(blocks: int, draft: DraftModel | None = None) -> Engine:
        limits = sizes(blocks)
        return Engine(
            CpuBackend().compile(program, checkpoint.tensors, limits), limits, eos_token_ids=tokenizer.eos_token_ids,
            context_tokens=2048, vocabulary=checkpoint.config.vocabulary, tokenizer_json=tokenizer.tokenizer.to_str,
            draft=draft,
        )  # fmt: skip

    return engine


class Halves(Mapping[str, Tensor]):
    """The same weights, some matrices in 16 bits."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.others = {name for i, name in enumerate(sorted(tensors)) if i % 16}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if len(tensor.shape) == 1 or name in self.others:
            return tensor
        values = dequantise(tensor).astype(np.float16)
        return Tensor(name, "F16", tensor.shape, values.reshape(-1).view(np.uint8))

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def question(tokenizer: ModelTokenizer, request_id: str, text: str, **how: object) -> Generate:
    chat = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    options = {"max_tokens": 32, "seed": 3, "temperature": 0.0, **how}
    return Generate(request_id, tuple(tokenizer.encode(chat)), Sampling(**options))  # type: ignore[arg-type]


def test_one_answer_whatever_happens(make: Callable[[int], Engine], tokenizer: ModelTokenizer) -> None:
    asked = [
        question(tokenizer, "france", "What is the capital of France?"),
        question(tokenizer, "sky", "Why is the sky blue?", temperature=0.8, top_p=0.9),
        question(tokenizer, "tea", "How do I make tea?", temperature=1.0, repetition_penalty=1.1, logprobs=1),
        question(tokenizer, "count", "Count from one to ten.", ignore_eos=True),
    ]
    alone = {one.request_id: run(make(100), one)[one.request_id] for one in asked}
    assert "Paris" in tokenizer.decode(alone["france"].tokens, skip_special=True)
    assert alone["france"].finish is Finish.STOP
    roomy, pressed = make(100), make(9)
    for engine in (roomy, roomy, pressed):
        for name, reply in run(engine, *asked).items():
            assert (reply.tokens, reply.finish) == (alone[name].tokens, alone[name].finish)
            assert reply.logprobs == alone[name].logprobs
    assert pressed.step(0.0).stats.preemptions_total > 0
    shared = len(tokenizer.encode(f"<|im_start|>system\n{SYSTEM}")) // 16 * 16
    assert roomy.step(0.0).stats.prefix_hit_tokens_total >= 3 * shared + 4 * shared
    for one in asked:
        sent = tuple(alone[one.request_id].tokens[:5])
        rest = run(make(100), Generate(one.request_id, one.prompt_ids, one.sampling, sent))[one.request_id]
        assert [*sent, *rest.tokens] == alone[one.request_id].tokens


def test_json_that_fits_a_schema(make: Callable[[int], Engine], tokenizer: ModelTokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    grammar = Grammar("json_schema", json.dumps(schema))
    how = {"grammar": grammar, "temperature": 0.7, "max_tokens": 100}
    asked = [question(tokenizer, str(i), "Describe a city as JSON.", seed=i, **how) for i in range(4)]
    for reply in run(make(100), *asked).values():
        assert reply.finish is Finish.STOP
        city = json.loads(tokenizer.decode(reply.tokens, skip_special=True))
        assert set(city) == {"city", "people"}
        assert type(city["people"]) is int


def test_its_own_draft_in_another_format_and_a_model_that_knows_nothing(
    make: Callable[..., Engine], tokenizer: ModelTokenizer, smollm2: Path
) -> None:
    asked = [
        question(tokenizer, "sky", "Why is the sky blue?", max_tokens=40, ignore_eos=True),
        question(tokenizer, "tea", "How do I make tea?", max_tokens=40, ignore_eos=True),
    ]
    plain = run(make(100), *asked)
    checkpoint = open_checkpoint(smollm2)
    vocabulary = checkpoint.config.vocabulary
    itself = checkpoint.program(), Halves(checkpoint.tensors)
    steps, rates = [], []
    for program, weights in (itself, small_model(vocabulary)):
        draft = DraftModel(
            CpuBackend().compile(program, weights, sizes(100)), sizes(100), context_tokens=2048,
            vocabularies=(vocabulary, vocabulary), clock=Ticks(0.0005),
        )  # fmt: skip
        engine = make(100, draft)
        for name, reply in run(engine, *asked).items():
            assert reply.tokens == plain[name].tokens
        steps.append(engine.step(0.0).stats.steps_total)
        rates.append(draft.accepted / draft.drafted)
    print(steps, rates)
    assert rates[0] > 0.85
    assert steps[0] < 35
    assert rates[1] < 0.1
    assert steps[1] > 40
