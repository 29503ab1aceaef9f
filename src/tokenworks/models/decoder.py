"""One step of a decoder, and the weights it needs.

Read beside Llama (arXiv 2302.13971): each layer adds what its mixer makes, then what its feed-forward network makes, to
the residual stream, both behind an RMS norm. What the parts are is the layer's own affair (models/parts/part.py).
Gemma 3 (arXiv 2503.19786) norms what the parts make too, before it joins the stream; OLMo 2 (arXiv 2501.00656) only
that. In GPT-J's order (GPT-NeoX-20B, arXiv 2204.06745, section 2.1.2) both parts look at the stream as it comes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.parts.part import Shapes


@dataclass(slots=True)
class Flow:
    """What goes from layer to layer."""

    stream: Value
    """The residual stream; or several, side by side, of which layers see the first."""
    vectors: Value | None
    """Of all layers: see models/parts/per_layer.py."""

    def select_rows(self, b: ProgramBuilder) -> None:
        self.stream = b.select_rows(self.stream)
        self.vectors = self.vectors and b.select_rows(self.vectors)


def decoder_program(config: DecoderConfig, *, hands_out: bool = False) -> Program:
    """Tokens of the step -> logits [R, vocabulary]. With `hands_out` also what the head reads, of all rows."""
    b = ProgramBuilder()
    streams, width = config.streams, config.width
    room = b.buffer(width * (streams.streams if streams else 1))
    x = b.embed("embed", width, scale=config.embedding_scale, into=room.columns(0, width))
    deep = 0
    if config.vision is not None:
        x, deep = b.inject(x, 0, "replace"), len(config.vision.deep)
    flow = Flow(room, config.per_layer.vectors(b, x) if config.per_layer else None)
    if streams:
        streams.spread(b, room)
    # Behind the last mixer that keeps something no row's work is for another: only rows whose logits are wanted go on.
    last = max(n for n, layer in enumerate(config.layers) if layer.mixer is not None and layer.mixer.keeps)
    for number, layer in enumerate(config.layers):
        write_layer(b, config, number, layer, flow, selects=number == last and not hands_out)
        if number < deep:
            b.inject(flow.stream, (1 + number) * width, "add")
    x = _normed(b, config, "norm", streams.gather(b, flow.stream) if streams else flow.stream)
    if hands_out:
        return b.finish(write_head(b, config, b.select_rows(x)), hidden=x)
    return b.finish(write_head(b, config, x))


def write_head(b: ProgramBuilder, config: DecoderConfig, x: Value) -> Value:
    """Normed rows -> logits."""
    if config.logit_scale != 1.0:
        x = b.scale(x, config.logit_scale)
    head, biases = "embed" if config.tied_head else "head", ("head.bias",) if config.biased_head else None
    logits = b.linear(x, (head,), config.vocabulary, biases=biases)
    return b.softcap(logits, config.logit_softcap) if config.logit_softcap else logits


def write_layer(
    b: ProgramBuilder, config: DecoderConfig, number: int, layer: Layer, flow: Flow, *, selects: bool
) -> None:
    """`selects`: behind the mixer only the rows whose logits are wanted go on."""
    name, width, streams = f"layers.{number}.", config.width, config.streams
    if streams:
        flow.stream = streams.predict(b, name, flow.stream)
    x = before = normed = flow.stream.columns(0, width)
    if layer.mixer is not None:
        normed = _norm(b, config, name + "attention_norm", x)
        mixed = layer.mixer.mix(b, name, normed)
        if selects:
            flow.select_rows(b)
            before, mixed = flow.stream.columns(0, width), b.select_rows(mixed)
            normed = b.select_rows(normed) if layer.laurel or config.parallel == "same norm" else normed
        x = _join(b, config, name + "attention_post_norm", before, layer.mixer.project(b, name, mixed, width))
        if layer.laurel:
            x = b.scale(b.add(x, layer.laurel.write(b, name, normed)), math.sqrt(0.5))
    if layer.feed_forward is not None:
        seen = normed if config.parallel == "same norm" else before if config.parallel == "own norm" else x
        if layer.norms_input and config.parallel != "same norm":
            seen = _norm(b, config, name + "mlp_norm", seen)
        x = _join(b, config, name + "mlp_post_norm", x, layer.feed_forward.write(b, name, seen))
    flow.stream = streams.correct(b, name, flow.stream, x) if streams else x
    if config.per_layer:
        assert flow.vectors is not None
        vector = flow.vectors.columns(number * config.per_layer.size, config.per_layer.size)
        seen = streams.first(b, name, flow.stream) if streams else flow.stream
        made = config.per_layer.write(b, name, seen, vector)
        flow.stream = streams.join(b, flow.stream, made) if streams else b.add(flow.stream, made)
    if config.scaled_layers:
        flow.stream = b.multiply(flow.stream, name + "layer_scale", wide=False)


def _norm(b: ProgramBuilder, config: DecoderConfig, weight: str, x: Value) -> Value:
    return x if config.norms == "behind" else _normed(b, config, weight, x)


def _normed(b: ProgramBuilder, config: DecoderConfig, weight: str, x: Value) -> Value:
    if not config.centred_norms:
        return b.rmsnorm(x, weight, config.norm_epsilon)
    return b.layernorm(x, weight, f"{weight}.bias" if config.biased_norms else None, config.norm_epsilon)


def _join(b: ProgramBuilder, config: DecoderConfig, norm: str, x: Value, made: Value) -> Value:
    return b.add(x, made if config.norms == "before" else _normed(b, config, norm, made))


def decoder_shapes(config: DecoderConfig) -> Shapes:
    """Canonical name -> shape of every weight a checkpoint must have: exactly what the program reads, but for the
    rotary frequencies, which follow from the config."""
    shapes: Shapes = {"embed": (config.vocabulary, config.width), **_norm_shapes(config, ("norm",))}
    if not config.tied_head:
        shapes["head"] = (config.vocabulary, config.width)
    if config.biased_head:
        shapes["head.bias"] = (config.vocabulary,)
    for part in (config.per_layer, config.streams):
        if part is not None:
            shapes |= part.shapes(config.width)
    for number, layer in enumerate(config.layers):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer_shapes(config, layer).items()}
    return shapes


def _norm_shapes(config: DecoderConfig, norms: Iterable[str]) -> Shapes:
    kinds = ("", ".bias") if config.biased_norms else ("",)
    return {norm + kind: (config.width,) for norm in norms for kind in kinds}


def layer_shapes(config: DecoderConfig, layer: Layer) -> Shapes:
    """By name within the layer."""
    norms = {"before": ("norm",), "behind": ("post_norm",), "around": ("norm", "post_norm")}[config.norms]
    shapes: Shapes = {}
    for kind, part in (("attention", layer.mixer), ("mlp", layer.feed_forward)):
        if part is not None:
            if kind == "attention" or config.parallel != "same norm":
                shapes |= _norm_shapes(config, [f"{kind}_{norm}" for norm in norms])
            shapes |= part.shapes(config.width)
    if layer.laurel:
        shapes |= layer.laurel.shapes(config.width)
    for whole in (config.per_layer, config.streams):
        if whole is not None:
            shapes |= whole.layer_shapes(config.width)
    return shapes | ({"layer_scale": (1,)} if config.scaled_layers else {})
