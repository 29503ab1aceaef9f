"""One step of a decoder transformer, and the weights it needs.

Read beside Llama (arXiv 2302.13971): each layer adds attention, then a gated MLP, to the residual stream, both behind
an RMS norm. The relatives differ in rows of DecoderConfig:
    Qwen2 (arXiv 2407.10671)     biases on q, k, v
    Qwen3 (arXiv 2505.09388)     q and k normalised per head before the rotation
    Gemma 3 (arXiv 2503.19786)   that, norms behind attention and MLP too, scaled embeddings, tanh-GELU gates,
                                 five sliding-window layers with their own rotary base for each global one
"""

from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.models.config import DecoderConfig, DecoderLayer


def decoder_program(config: DecoderConfig) -> Program:
    """Tokens of the step -> logits [R, vocabulary]."""
    b = ProgramBuilder()
    x = b.embed("embed", config.width, scale=config.embedding_scale)
    for number, layer in enumerate(config.layers):
        name = f"layers.{number}."
        attended = _attend(b, config, layer, name, x)
        if number == len(config.layers) - 1:
            # Behind the last attention no row looks at another: only those whose logits are wanted go on.
            x, attended = b.select_rows(x), b.select_rows(attended)
        x = _attention_out(b, config, name, x, attended)
        x = _mlp(b, config, name, x)
    x = b.rmsnorm(x, "norm", config.norm_epsilon)
    logits = b.linear(x, ("embed" if config.tied_head else "head",), config.vocabulary)
    return b.finish(b.softcap(logits, config.logit_softcap) if config.logit_softcap else logits)


def _attend(b: ProgramBuilder, config: DecoderConfig, layer: DecoderLayer, name: str, x: Value) -> Value:
    size, q_width, kv_width = config.head_size, config.heads * config.head_size, config.kv_heads * config.head_size
    normed = b.rmsnorm(x, name + "attention_norm", config.norm_epsilon)
    qkv = _linear(b, config, name, normed, ("q", "k", "v"), q_width + 2 * kv_width)
    q, k, v = qkv.columns(0, q_width), qkv.columns(q_width, kv_width), qkv.columns(q_width + kv_width, kv_width)
    if config.qk_norm:
        q = b.rmsnorm(q, name + "q_norm", config.norm_epsilon, group=size)
        k = b.rmsnorm(k, name + "k_norm", config.norm_epsilon, group=size)
    frequencies = "rope." + layer.rope
    return b.attend(
        b.rope(q, size, frequencies),
        b.rope(k, size, frequencies),
        v,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=size,
        scale=config.attention_scale,
        window=layer.window,
        softcap=config.attention_softcap,
    )


def _attention_out(b: ProgramBuilder, config: DecoderConfig, name: str, x: Value, attended: Value) -> Value:
    out = _linear(b, config, name, attended, ("o",), config.width)
    if config.sandwich_norms:
        out = b.rmsnorm(out, name + "attention_post_norm", config.norm_epsilon)
    return b.add(x, out)


def _mlp(b: ProgramBuilder, config: DecoderConfig, name: str, x: Value) -> Value:
    normed = b.rmsnorm(x, name + "mlp_norm", config.norm_epsilon)
    both = _linear(b, config, name, normed, ("gate", "up"), 2 * config.mlp_width)
    gate, up = both.columns(0, config.mlp_width), both.columns(config.mlp_width, config.mlp_width)
    out = _linear(b, config, name, b.gate(gate, up, config.activation), ("down",), config.width)
    if config.sandwich_norms:
        out = b.rmsnorm(out, name + "mlp_post_norm", config.norm_epsilon)
    return b.add(x, out)


def _linear(b: ProgramBuilder, config: DecoderConfig, name: str, x: Value, maps: tuple[str, ...], width: int) -> Value:
    biases = [f"{name}{m}.bias" if m in config.biased else None for m in maps]
    return b.linear(x, [name + m for m in maps], width, biases=biases if any(biases) else None)


def decoder_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every weight a checkpoint must have: exactly what the program reads, but for the
    rotary frequencies, which follow from the config."""
    q_width, kv_width = config.heads * config.head_size, config.kv_heads * config.head_size
    maps = {
        "q": (q_width, config.width),
        "k": (kv_width, config.width),
        "v": (kv_width, config.width),
        "o": (config.width, q_width),
        "gate": (config.mlp_width, config.width),
        "up": (config.mlp_width, config.width),
        "down": (config.width, config.mlp_width),
    }
    norms = {"attention_norm": config.width, "mlp_norm": config.width}
    if config.qk_norm:
        norms |= {"q_norm": config.head_size, "k_norm": config.head_size}
    if config.sandwich_norms:
        norms |= {"attention_post_norm": config.width, "mlp_post_norm": config.width}
    layer: dict[str, tuple[int, ...]] = {
        **maps,
        **{f"{m}.bias": (maps[m][0],) for m in sorted(config.biased)},
        **{norm: (width,) for norm, width in norms.items()},
    }
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocabulary, config.width), "norm": (config.width,)}
    if not config.tied_head:
        shapes["head"] = (config.vocabulary, config.width)
    for number in range(len(config.layers)):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes
