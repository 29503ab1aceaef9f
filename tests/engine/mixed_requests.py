"""Random requests of every kind, arriving and cancelled at any time, in a cache too small for all of them:

    python tests/engine/mixed_requests.py --device gpu|cpu --requests 1000 --seed 1 [--eager]

Greedy and sampled, with penalties, biases, logprobs, grammars, priorities, shared beginnings, prompts of many chunks.
Whatever happens, each request ends once and rightly, and no block is lost. Prints what was met on the way.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

from small_model import ask, limits, make_engine
from test_constrain import EOS, VOCABULARY, constrained, tokenizer
from worlds import check_accounts

from tokenworks.engine.engine import Engine
from tokenworks.kernels.backend import Backend
from tokenworks.protocol.messages import Finish, Generate, TokenChunk

SIZES = limits(step_tokens=64, sequences=16, logit_rows=24, blocks=90)
CONTEXT_TOKENS = 200
CANCELLED, ARRIVALS = 0.1, 0.4
"""Chances in a step, of each request there is and of the next to come."""


def request_of(draw: random.Random, number: int) -> Generate:
    name, seed = f"r{number}", draw.getrandbits(63)
    if draw.random() < 0.2:
        return constrained(name, "regex", "(ab|c){2,20}", seed=seed, repetition_penalty=draw.choice([1.0, 1.2]))
    system = [(7 * i * i + draw.choice([3, 4])) % 256 for i in range(draw.choice([0, 0, 8, 24]))]
    prompt = [*system, *(draw.randrange(256) for _ in range(draw.choice([1, 3, 20, 90])))]
    how = {
        "temperature": draw.choice([0.0, 0.0, 0.7, 1.3]),
        "top_k": draw.choice([0, 0, 20]),
        "top_p": draw.choice([1.0, 0.9]),
        "min_p": draw.choice([0.0, 0.05]),
        "repetition_penalty": draw.choice([1.0, 1.0, 1.3]),
        "frequency_penalty": draw.choice([0.0, 0.0, 0.5]),
        "logit_bias": draw.choice([{}, {5: 3.0, 6: -100.0}]),
        "logprobs": draw.choice([None, None, 0, 4]),
        "prompt_logprobs": draw.choice([None, None, None, 1]),
        "max_tokens": draw.choice([1, 8, 30, 80]),
    }
    return ask(name, prompt, (), draw.choice([-1, 0, 0, 3]), seed=seed, ignore_eos=draw.random() < 0.5, **how)


class Mixture:
    """What was asked, and what came."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self.draw = random.Random(seed)
        self.engine: Engine = make_engine(
            backend, SIZES, context_tokens=CONTEXT_TOKENS, vocabulary=VOCABULARY, eos=EOS,
            tokenizer_json=tokenizer().to_str,
        )  # fmt: skip
        self.requests: dict[str, Generate] = {}
        self.replies: dict[str, list[TokenChunk]] = {}
        self.live: list[str] = []
        self.cancelled: set[str] = set()
        self.preemptions = 0

    def run(self, count: int) -> Counter[str]:
        """How many of `count` requests ended how."""
        steps = 0
        while len(self.requests) < count or self.engine.busy:
            while len(self.requests) < count and self.draw.random() < ARRIVALS:
                request = request_of(self.draw, len(self.requests))
                self.requests[request.request_id], self.replies[request.request_id] = request, []
                self.live.append(request.request_id)
                self.engine.add(request, steps * 0.01)
            if self.live and self.draw.random() < CANCELLED:
                self.cancelled.add(name := self.draw.choice(self.live))
                self.engine.cancel(name)
            step = self.engine.step(steps * 0.01)
            self.preemptions = step.stats.preemptions_total
            for chunk in step.chunks:
                self.replies[chunk.request_id].append(chunk)
                if chunk.finish is not None:
                    self.live.remove(chunk.request_id)  # ValueError: it had ended already
            check_accounts(self.engine, SIZES)
            steps += 1
            assert steps < 1000 + 100 * count, "it does not come to an end"
        assert not self.live
        return Counter(self._ending(request) for request in self.requests.values())

    def _ending(self, request: Generate) -> str:
        chunks = self.replies[request.request_id]
        finish, how = chunks[-1].finish, request.sampling
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        assert all(0 <= token < VOCABULARY for token in tokens)
        assert len(tokens) <= how.max_tokens
        if finish is Finish.CANCELLED:
            assert request.request_id in self.cancelled
        elif finish is Finish.STOP and how.grammar is not None:
            assert re.fullmatch("(ab|c){2,20}", tokenizer().decode(tokens))
        elif finish is Finish.LENGTH:
            assert len(tokens) == min(how.max_tokens, CONTEXT_TOKENS - len(request.prompt_ids))
        else:
            assert finish is Finish.STOP, chunks[-1].error
            assert not how.ignore_eos
        if how.logprobs is not None and finish is not Finish.CANCELLED:
            assert sum(len(chunk.logprobs) for chunk in chunks) == len(tokens)
        return str(finish and finish.value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="no graphs: memory of its own for each tensor is possible")
    chosen = parser.parse_args()
    if chosen.device == "gpu":
        sys.path.append(str(Path(__file__).parents[1] / "kernels"))
        from gpu_here import gpu_backend

        from tokenworks.kernels.cuda import backend as cuda_backend

        if chosen.eager:
            cuda_backend.Graphs = lambda *_, **__: None
        backend = gpu_backend()
    else:
        from tokenworks.kernels.cpu.backend import CpuBackend

        backend = CpuBackend()
    mixture = Mixture(backend, chosen.seed)
    endings = mixture.run(chosen.requests)
    print(json.dumps({"requests": chosen.requests, "preemptions": mixture.preemptions, **endings}))


if __name__ == "__main__":
    main()
