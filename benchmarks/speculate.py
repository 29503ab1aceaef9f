"""Decoding with and without speculation, on texts that repeat themselves and texts that do not.

    python benchmarks/speculate.py [--model smollm2-135m] [--draft MODEL] [--threads 1] [--at-once 1,4,16] \
        [--tokens 120]

With --draft, or a model with a layer of its own that guesses, one side guesses from the text alone, the other with that
too; without, one does not guess.
Each text is decoded by both, one after the other, in one process, and must come out the same. On one thread the time is
that thread's own processor time, so that other work on the machine disturbs little; on more it is the clock's.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import tokenworks.kvcache.blocks
import tokenworks.kvcache.layout
from tokenworks.engine.draft import DraftModel
from tokenworks.engine.engine import Engine
from tokenworks.engine.multi_token import MultiToken, guess_blocks
from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.config import DecoderConfig
from tokenworks.models.sources.resolve import resolve
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.messages import EngineStats, Generate
from tokenworks.protocol.sampling import Grammar, Sampling

PERSON = (
    "Anna Kowalski, born 12 March 1981 in Gdansk, works as a structural engineer at Northwind Bridges in Rotterdam. "
    "Her email is anna.kowalski@northwind.example and her phone number is +31 10 555 0199."
)
CITIES = [{"city": city, "country": country, "unit": "celsius"} for city, country in (("Oslo", "NO"), ("Rome", "IT"))]
STRINGS = {"type": "string", "maxLength": 40}
ROW = {"type": "object", "properties": {"city": STRINGS, "country": STRINGS, "unit": STRINGS}}
TABLE = {"type": "array", "items": ROW | {"required": list(ROW["properties"])}, "minItems": 5, "maxItems": 9}
FACTS = {"type": "object", "properties": dict.fromkeys(("name", "born", "employer", "email", "phone"), STRINGS)}


def source(module: object) -> str:
    return Path(str(module.__file__)).read_text()[:1500]


TEXTS = {
    "chat": [
        "Why is the sky blue?",
        "Explain how a diesel engine works, step by step.",
        "Write a short story about a fox and a lighthouse.",
        "Give me tips for learning to play the piano.",
    ],
    "code edit": [
        f"Rename `block` to `page` in this code. Answer with the code only.\n```python\n{source(module)}\n```"
        for module in (tokenworks.kvcache.blocks, tokenworks.kvcache.layout)
    ],
    "JSON by schema": [f"Extract the facts in this text as JSON.\n{PERSON}"],
    "JSON like the last": [f"Go on with five more cities: {json.dumps(CITIES)}"],
}
SCHEMAS = {"JSON by schema": FACTS | {"required": list(FACTS["properties"])}, "JSON like the last": TABLE}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--draft")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-once", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=120)
    options = parser.parse_args()
    path = resolve(options.model).path
    tokenizer, checkpoint = load_tokenizer(path), open_checkpoint(path)
    limits = Limits(512, 64, 64, 1500, 16, "float16", options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter

    def engine(draft: DraftModel | None, *, speculate: bool, own_layer: bool = False) -> Engine:
        program = checkpoint.program(guesses=own_layer)
        blocks = limits.blocks + guess_blocks(limits.sequences, limits.block_tokens)
        executable = CpuBackend().compile(program, checkpoint.tensors, replace(limits, blocks=blocks))
        own = MultiToken(executable, limits, clock) if own_layer else None
        return Engine(
            executable, limits, speculate=speculate, draft=own or draft,
            eos_token_ids=tokenizer.eos_token_ids, context_tokens=2048, vocabulary=checkpoint.config.vocabulary,
            tokenizer_json=tokenizer.tokenizer.to_str,
        )  # fmt: skip

    draft = None
    if options.draft:
        small = open_checkpoint(resolve(options.draft).path)
        draft = DraftModel(
            CpuBackend().compile(small.program(), small.tensors, limits), limits, clock=clock,
            context_tokens=2048, vocabularies=(small.config.vocabulary, checkpoint.config.vocabulary),
        )  # fmt: skip
    own_layer = draft is None and isinstance(checkpoint.config, DecoderConfig) and bool(checkpoint.config.multi_token)
    plain = engine(None, speculate=draft is not None or own_layer)
    guessing = engine(draft, speculate=True, own_layer=own_layer)

    def decode(engine: Engine, requests: list[Generate]) -> tuple[dict[str, list[int]], float, EngineStats]:
        """Tokens, seconds a token from where all have their first one, counts."""
        tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
        for request in requests:
            engine.add(request, clock())
        since_s, before = None, 0
        while engine.busy:
            done = engine.step(clock())
            for chunk in done.chunks:
                tokens[chunk.request_id] += chunk.token_ids
            if since_s is None and all(tokens.values()):
                since_s, before = clock(), sum(map(len, tokens.values()))
        assert since_s is not None
        return tokens, (clock() - since_s) / (sum(map(len, tokens.values())) - before), done.stats

    print(
        "| text | temperature | at once | tok/s | with guesses | ratio | guesses right |\n|---|---|---|---|---|---|---|"
    )
    for at_once in map(int, options.at_once.split(",")):
        for kind, texts in TEXTS.items():
            for temperature in (0.0, 0.7):
                plain_s = guessing_s = drafted = accepted = 0.0
                for number, text in enumerate(texts):
                    prompt = tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
                    schema = SCHEMAS.get(kind)
                    requests = [
                        Generate(f"{number}.{i}", tuple(prompt), Sampling(
                            max_tokens=options.tokens, temperature=temperature, top_p=0.95, seed=i,
                            ignore_eos=schema is None,
                            grammar=Grammar("json_schema", json.dumps(schema)) if schema else None,
                        )) for i in range(at_once)
                    ]  # fmt: skip
                    expected, one_s, _ = decode(plain, requests)
                    before = guessing.step(clock()).stats
                    got, other_s, after = decode(guessing, requests)
                    assert got == expected
                    plain_s, guessing_s = plain_s + one_s, guessing_s + other_s
                    drafted += after.draft_tokens_total - before.draft_tokens_total
                    accepted += after.draft_tokens_accepted_total - before.draft_tokens_accepted_total
                right = f"{accepted / drafted:.0%} of {drafted:.0f}" if drafted else "none run"
                speeds = f"{len(texts) / plain_s:.0f} | {len(texts) / guessing_s:.0f} | {plain_s / guessing_s:.2f}"
                print(f"| {kind} | {temperature} | {at_once} | {speeds} | {right} |", flush=True)


if __name__ == "__main__":
    main()
