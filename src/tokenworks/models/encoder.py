"""One step of a BERT encoder (arXiv 1810.04805) that makes sentence vectors, and the weights it needs.

Unlike the decoders, norms come after each residual sum, positions are learned vectors, and every token sees its whole
input. All inputs are one segment, so token type 0 is added everywhere.
"""

from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.models.config import EncoderConfig


def encoder_program(config: EncoderConfig) -> Program:
    """Tokens of the step's inputs -> vectors [sequences, width]."""
    b = ProgramBuilder()
    token = b.embed("embed", config.width)
    position = b.embed("positions", config.width, index="position")
    kind = b.embed("token_types", config.width, index="zero")
    x = _norm(b, config, b.add(b.add(token, kind), position), "norm")
    for number in range(config.layers):
        name = f"layers.{number}."
        x = _norm(b, config, b.add(_attention(b, config, name, x), x), name + "attention_norm")
        x = _norm(b, config, b.add(_mlp(b, config, name, x), x), name + "mlp_norm")
    return b.finish(b.pool(x, config.pooling, normalise=config.normalise))


def _attention(b: ProgramBuilder, config: EncoderConfig, name: str, x: Value) -> Value:
    maps, width = ("q", "k", "v"), config.width
    qkv = b.linear(x, [name + m for m in maps], 3 * width, biases=[f"{name}{m}.bias" for m in maps])
    attended = b.attend(
        qkv.columns(0, width),
        qkv.columns(width, width),
        qkv.columns(2 * width, width),
        heads=config.heads,
        kv_heads=config.heads,
        head_size=config.head_size,
        scale=config.head_size**-0.5,
        cached=False,
    )
    return b.linear(attended, (name + "o",), width, biases=(name + "o.bias",))


def _mlp(b: ProgramBuilder, config: EncoderConfig, name: str, x: Value) -> Value:
    up = b.linear(x, (name + "up",), config.mlp_width, biases=(name + "up.bias",))
    return b.linear(b.activate(up, config.activation), (name + "down",), config.width, biases=(name + "down.bias",))


def _norm(b: ProgramBuilder, config: EncoderConfig, x: Value, name: str) -> Value:
    return b.layernorm(x, name, name + ".bias", config.norm_epsilon)


def encoder_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every weight: exactly what the program reads."""
    width, mlp_width = config.width, config.mlp_width
    maps = dict.fromkeys("qkvo", (width, width)) | {"up": (mlp_width, width), "down": (width, mlp_width)}
    layer: dict[str, tuple[int, ...]] = {
        **maps,
        **{f"{m}.bias": (shape[0],) for m, shape in maps.items()},
        **{norm + end: (width,) for norm in ("attention_norm", "mlp_norm") for end in ("", ".bias")},
    }
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (config.vocabulary, width),
        "positions": (config.positions, width),
        "token_types": (config.token_types, width),
        "norm": (width,),
        "norm.bias": (width,),
    }
    for number in range(config.layers):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes
