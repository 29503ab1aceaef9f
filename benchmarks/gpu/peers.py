"""The same shapes in transformers: a compiled static cache, prompts, and continuous batching."""

from typing import Any

from measure import Report, device, median_ms
from shapes import Shape

TRIES = 3
ROOM = 64
"""Of a static cache, for steps that go on from each other: later versions count by themselves."""
NEW_TOKENS = 160
"""Of each request in a batch, so that the first ones still decode when the last one's prompt is done."""


def peer_model(shape: Shape, where: str, attention: str = "sdpa") -> Any:
    """With random weights, made on the device."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head, tie_word_embeddings=shape.tied, max_position_embeddings=65536,
    )  # fmt: skip
    with torch.device(where):  # rotary tables are made rightly, and nothing passes the CPU
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return model.eval()


def compiled_decode(report: Report, shape: Shape, sequences: int, context: int, ours_ms: float | None) -> None:
    """Static cache, torch.compile with graphs, but where there is no GPU."""
    import torch
    from transformers import StaticCache

    where = device()
    model = peer_model(shape, where)
    cache = StaticCache(config=model.config, max_cache_len=context + ROOM)
    ids = torch.randint(0, shape.vocabulary, (sequences, 1), device=where)
    place = torch.tensor([context - 1], device=where)
    forward = model.forward
    if where == "cuda":
        forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    before = torch.randint(0, shape.vocabulary, (sequences, context - 1), device=where)
    with torch.no_grad():
        model(before, past_key_values=cache, use_cache=True, logits_to_keep=1)

        def step() -> object:
            return forward(ids, past_key_values=cache, cache_position=place, use_cache=True)

        for _ in range(TRIES):
            step()
        ms = median_ms(step, graph=False)
    report.add(f"transformers compiled, {sequences} x {context}", ms, "ms", note=_compared(ms, ours_ms))


def prompts(report: Report, shape: Shape, ours_ms: dict[int, float]) -> None:
    """One prompt at a time, of the lengths of ours."""
    import torch

    where = device()
    model = peer_model(shape, where)
    for tokens, ours in ours_ms.items():
        ids = torch.randint(0, shape.vocabulary, (1, tokens), device=where)
        with torch.no_grad():
            ms = median_ms(lambda: model(ids, use_cache=True, logits_to_keep=1), graph=False, repeats=7)  # noqa: B023
        report.add(f"transformers prompt of {tokens}", ms, "ms", note=_compared(ms, ours))


def batches(report: Report, shape: Shape, context: int, ours_ms: dict[int, float]) -> None:
    """Continuous batching: the time of a step in which all decode, of as many sequences as ours had."""
    import torch

    model = peer_model(shape, device())
    generator = torch.Generator().manual_seed(1)
    for sequences, ours in ours_ms.items():
        ids = torch.randint(3, shape.vocabulary, (sequences, context), generator=generator).tolist()

        def batch(ids: list[list[int]] = ids, ours: float = ours) -> None:
            _batch(model, ids, 2)  # its graphs and memory
            ms, steps = _step_of(_batch(model, ids, NEW_TOKENS))
            note = f"{len(ids) / ms * 1e3:.0f} tok/s over {steps} steps; {_compared(ms, ours)}"
            report.add(f"transformers generate_batch, {len(ids)} x {context}", ms, "ms", note=note)

        report.attempt(f"generate_batch {sequences}", batch)


def _batch(model: Any, ids: list[list[int]], new_tokens: int) -> list[list[float]]:
    """When each request had each token, seconds."""
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    made = model.generate_batch(ids, generation_config=config, record_timestamps=True)
    times = [each.timestamps for each in made.values()]
    assert len(times) == len(ids), f"{len(times)} of {len(ids)} replies"
    assert {len(each) for each in times} == {new_tokens}
    return times


def _step_of(times: list[list[float]]) -> tuple[float, int]:
    """(ms of a step, how many there were) while all requests decode: from the last one's first token to the first one's
    last."""
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    seen = [at for at in max(times, key=lambda each: each[0]) if begin <= at <= end]
    assert len(seen) > 8, "the first requests end before the last begin"
    return (seen[-1] - seen[0]) / (len(seen) - 1) * 1e3, len(seen) - 1


def _compared(ms: float, ours_ms: float | None) -> str:
    return "" if ours_ms is None else f"ours is {ms / ours_ms:.2f}x as fast"
