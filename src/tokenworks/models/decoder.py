"""One step of a decoder, and the weights it needs.

Read beside Llama (arXiv 2302.13971): each layer adds what its mixer makes, then what its feed-forward network makes, to
the residual stream, both behind an RMS norm. What the parts are is the layer's own affair (models/parts.py). Gemma 3
(arXiv 2503.19786) norms what the parts make too, before it joins the stream; OLMo 2 (arXiv 2501.00656) only that.
"""

from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.models.config import DecoderConfig
from tokenworks.models.parts import Shapes


def decoder_program(config: DecoderConfig) -> Program:
    """Tokens of the step -> logits [R, vocabulary]."""
    b = ProgramBuilder()
    x = b.embed("embed", config.width, scale=config.embedding_scale)
    deep = 0
    if config.vision is not None:
        x, deep = b.inject(x, 0, "replace"), len(config.vision.deep)
    last_mixer = max(number for number, layer in enumerate(config.layers) if layer.mixer is not None)
    for number, layer in enumerate(config.layers):
        name = f"layers.{number}."
        if layer.mixer is not None:
            mixed = layer.mixer.mix(b, name, _norm(b, config, name + "attention_norm", x))
            if number == last_mixer:
                # Behind the last mixer no row looks at another: only those whose logits are wanted go on.
                x, mixed = b.select_rows(x), b.select_rows(mixed)
            x = _join(b, config, name + "attention_post_norm", x, layer.mixer.project(b, name, mixed, config.width))
        if layer.feed_forward is not None:
            made = layer.feed_forward.write(b, name, _norm(b, config, name + "mlp_norm", x))
            x = _join(b, config, name + "mlp_post_norm", x, made)
        if number < deep:
            x = b.inject(x, (1 + number) * config.width, "add")
    x = b.rmsnorm(x, "norm", config.norm_epsilon)
    if config.logit_scale != 1.0:
        x = b.scale(x, config.logit_scale)
    logits = b.linear(x, ("embed" if config.tied_head else "head",), config.vocabulary)
    return b.finish(b.softcap(logits, config.logit_softcap) if config.logit_softcap else logits)


def _norm(b: ProgramBuilder, config: DecoderConfig, weight: str, x: Value) -> Value:
    return x if config.norms == "behind" else b.rmsnorm(x, weight, config.norm_epsilon)


def _join(b: ProgramBuilder, config: DecoderConfig, norm: str, x: Value, made: Value) -> Value:
    return b.add(x, made if config.norms == "before" else b.rmsnorm(made, norm, config.norm_epsilon))


def decoder_shapes(config: DecoderConfig) -> Shapes:
    """Canonical name -> shape of every weight a checkpoint must have: exactly what the program reads, but for the
    rotary frequencies, which follow from the config."""
    shapes: Shapes = {"embed": (config.vocabulary, config.width), "norm": (config.width,)}
    if not config.tied_head:
        shapes["head"] = (config.vocabulary, config.width)
    norms = {"before": ("norm",), "behind": ("post_norm",), "around": ("norm", "post_norm")}[config.norms]
    for number, layer in enumerate(config.layers):
        for kind, part in (("attention", layer.mixer), ("mlp", layer.feed_forward)):
            if part is not None:
                parts = part.shapes(config.width) | {f"{kind}_{norm}": (config.width,) for norm in norms}
                shapes |= {f"layers.{number}.{name}": shape for name, shape in parts.items()}
    return shapes
