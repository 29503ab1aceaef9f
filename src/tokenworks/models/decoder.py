"""One step of a decoder, and the weights it needs.

Read beside Llama (arXiv 2302.13971): each layer adds what its mixer makes, then what its feed-forward network makes, to
the residual stream, both behind an RMS norm. What the parts are is the layer's own affair (models/parts.py); Gemma 3
(arXiv 2503.19786) has norms behind them too, before they join the stream.
"""

from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.models.config import DecoderConfig
from tokenworks.models.parts import Shapes


def decoder_program(config: DecoderConfig) -> Program:
    """Tokens of the step -> logits [R, vocabulary]."""
    b = ProgramBuilder()
    x = b.embed("embed", config.width, scale=config.embedding_scale)
    for number, layer in enumerate(config.layers):
        name = f"layers.{number}."
        mixed = layer.mixer.mix(b, name, b.rmsnorm(x, name + "attention_norm", config.norm_epsilon))
        if number == len(config.layers) - 1:
            # Behind the last mixer no row looks at another: only those whose logits are wanted go on.
            x, mixed = b.select_rows(x), b.select_rows(mixed)
        x = _join(b, config, name + "attention_post_norm", x, layer.mixer.project(b, name, mixed, config.width))
        normed = b.rmsnorm(x, name + "mlp_norm", config.norm_epsilon)
        x = _join(b, config, name + "mlp_post_norm", x, layer.feed_forward.write(b, name, normed))
    x = b.rmsnorm(x, "norm", config.norm_epsilon)
    logits = b.linear(x, ("embed" if config.tied_head else "head",), config.vocabulary)
    return b.finish(b.softcap(logits, config.logit_softcap) if config.logit_softcap else logits)


def _join(b: ProgramBuilder, config: DecoderConfig, norm: str, x: Value, made: Value) -> Value:
    return b.add(x, b.rmsnorm(made, norm, config.norm_epsilon) if config.sandwich_norms else made)


def decoder_shapes(config: DecoderConfig) -> Shapes:
    """Canonical name -> shape of every weight a checkpoint must have: exactly what the program reads, but for the
    rotary frequencies, which follow from the config."""
    shapes: Shapes = {"embed": (config.vocabulary, config.width), "norm": (config.width,)}
    if not config.tied_head:
        shapes["head"] = (config.vocabulary, config.width)
    norms = ["attention_norm", "mlp_norm"]
    if config.sandwich_norms:
        norms += ["attention_post_norm", "mlp_post_norm"]
    for number, layer in enumerate(config.layers):
        parts = layer.mixer.shapes(config.width) | layer.feed_forward.shapes(config.width)
        parts |= dict.fromkeys(norms, (config.width,))
        shapes |= {f"layers.{number}.{name}": shape for name, shape in parts.items()}
    return shapes
