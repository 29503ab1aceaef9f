"""Tokens of one core, ours beside OpenVINO GenAI and llama.cpp, by processor time: for machines that others use too.

    python benchmarks/one_core.py ours MODEL.gguf [--at-once 4,16,64]
    OPENVINO_PYTHON benchmarks/one_core.py openvino MODEL.gguf
    python benchmarks/one_core.py llama MODEL.gguf --llama-bench PATH

To see what a machine with AVX2 alone would make of it, set TOKENWORKS_FORCE_ISA=avx2 and ONEDNN_MAX_CPU_ISA=AVX2 (the
rest of OpenVINO still asks the processor itself), and build llama.cpp's ggml-cpu with GGML_NATIVE=OFF, GGML_AVX2=ON,
GGML_FMA=ON, GGML_F16C=ON, GGML_BMI2=ON. Prompts are distinct and of any token ids; 128 tokens in and 128 out, greedy.
"""

import argparse
import random
import resource
import subprocess
import time
from collections.abc import Callable
from typing import Any

TOKENS = 128
Run = Callable[[list[list[int]], int], None]
"""Answers prompts with so many tokens each."""


def ours(model: str) -> Run:
    from pathlib import Path

    from tokenworks.engine.engine import Engine
    from tokenworks.kernels.backend import Limits
    from tokenworks.kernels.cpu.backend import CpuBackend
    from tokenworks.models.checkpoint import open_checkpoint
    from tokenworks.models.text.tokenizer import load_tokenizer
    from tokenworks.protocol.messages import Generate
    from tokenworks.protocol.sampling import Sampling

    checkpoint, tokenizer = open_checkpoint(Path(model)), load_tokenizer(Path(model))
    limits = Limits(512, 64, 64, 2048, 16, "int8", 1)
    engine = Engine(
        CpuBackend().compile(checkpoint.program(), checkpoint.tensors, limits), limits, speculate=False,
        eos_token_ids=tokenizer.eos_token_ids, context_tokens=2048,
        vocabulary=checkpoint.config.vocabulary, tokenizer_json=tokenizer.tokenizer.to_str,
    )  # fmt: skip

    def run(prompts: list[list[int]], tokens: int) -> None:
        for i, prompt in enumerate(prompts):
            sampling = Sampling(max_tokens=tokens, temperature=0.0, seed=i, ignore_eos=True)
            engine.add(Generate(str(i), tuple(prompt), sampling), 0.0)
        while engine.busy:
            engine.step(0.0)

    return run


def openvino(model: str) -> Run:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 2, 64, 2048
    scheduler.enable_prefix_caching = False
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    pipeline: Any = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", options)

    def run(prompts: list[list[int]], tokens: int) -> None:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        handles = [pipeline.add_request(i, ov.Tensor(np.array([prompt])), config) for i, prompt in enumerate(prompts)]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        assert all(handle.can_read() for handle in handles)

    return run


def measure(run: Run, at_once: list[int]) -> None:
    rng = random.Random(0)

    def cpu_s(count: int, length: int, tokens: int, repeats: int = 1) -> float:
        """The least of some repeats, each with prompts of its own."""
        best = float("inf")
        for _ in range(repeats):
            prompts = [[rng.randrange(1000, 40000) for _ in range(length)] for _ in range(count)]
            start = time.process_time()
            run(prompts, tokens)
            best = min(best, time.process_time() - start)
        return best

    cpu_s(1, 512, 2)
    print(f"prefill of 512: {512 / cpu_s(1, 512, 1, 5):.0f} tok/s", flush=True)
    first, all_s = cpu_s(1, TOKENS, 1, 3), cpu_s(1, TOKENS, TOKENS, 3)
    print(f"decode for one client: {(TOKENS - 1) / (all_s - first):.0f} tok/s", flush=True)
    for count in at_once:
        print(f"{count} at once: {count * TOKENS / cpu_s(count, TOKENS, TOKENS):.0f} tok/s", flush=True)


def llama(program: str, model: str) -> None:
    def children_s(*options: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([program, "-m", model, "-t", "1", *options], check=True, capture_output=True)
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    for name, tokens, what in (
        ("prefill of 512", 512, ("-p", "512", "-n", "0")),
        ("decode", 128, ("-p", "0", "-n", "128")),
    ):
        print(
            f"{name}: {4 * tokens / (children_s(*what, '-r', '5') - children_s(*what, '-r', '1')):.0f} tok/s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["ours", "openvino", "llama"])
    parser.add_argument("model")
    parser.add_argument("--at-once", default="4,16,64")
    parser.add_argument("--llama-bench", default="llama-bench")
    options = parser.parse_args()
    if options.engine == "llama":
        llama(options.llama_bench, options.model)
    else:
        measure(
            (ours if options.engine == "ours" else openvino)(options.model),
            [int(n) for n in options.at_once.split(",")],
        )


if __name__ == "__main__":
    main()
