"""Whisper's decoder (arXiv 2212.04356), and the weights it needs.

Its attention to the sounds is over K and V that depend on the sounds alone. They are kept where K and V of tokens are:
a sequence begins with `heard` positions that the sounds fill, in the same blocks, so that all that is true of a prompt
is true of them: they are found again in the prefix tree, computed in chunks, given up and made again. The first part of
the program fills them, the second runs tokens, whose own K and V lie behind: attention to the text begins there.
"""

from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.models.parts.part import Shapes, linear, shapes_of
from tokenworks.models.speech.config import SpeechConfig
from tokenworks.models.speech.encoder import attention_biases

HEAR, WRITE = 0, 1
"""Parts of the program."""
_NORMS = ("attention_norm", "cross_norm", "mlp_norm")


def decoder_program(config: SpeechConfig) -> Program:
    """Part HEAR: the encoder's rows -> K and V of their positions. Part WRITE: tokens, whose places in the text are
    StepBatch.axes -> logits [R, vocabulary]."""
    b = ProgramBuilder()
    width, epsilon, heads = config.width, config.norm_epsilon, config.decoder.heads
    size, biased = width // heads, attention_biases(config)
    cross = frozenset("cross_" + each for each in biased)
    shape = {"heads": heads, "kv_heads": heads, "head_size": size, "scale": size**-0.5}
    heard = b.input(width)
    kept = []
    for number in range(config.decoder.layers):
        kv = linear(b, f"layers.{number}.", heard, ("cross_k", "cross_v"), 2 * width, cross)
        kept.append(b.keep(kv.columns(0, width), kv.columns(width, width), kv_heads=heads, head_size=size))
    b.pause()
    x = b.add(b.embed("embed", width), b.embed("positions", width, index="axis"))
    for number, layer in enumerate(kept):
        name = f"layers.{number}."
        normed = b.layernorm(x, name + "attention_norm", name + "attention_norm.bias", epsilon)
        qkv = linear(b, name, normed, ("q", "k", "v"), 3 * width, biased)
        q, k, v = (qkv.columns(i * width, width) for i in range(3))
        read = b.attend(q, k, v, **shape, source=layer, begin=config.heard)
        x = b.add(x, linear(b, name, read, ("o",), width, biased))
        if layer == kept[-1]:
            # No token looks at another one from here on: only those whose logits are wanted go on.
            x = b.select_rows(x)
        normed = b.layernorm(x, name + "cross_norm", name + "cross_norm.bias", epsilon)
        q = linear(b, name, normed, ("cross_q",), width, cross)
        read = b.attend(q, None, None, **shape, source=layer, end=config.heard)
        x = b.add(x, linear(b, name, read, ("cross_o",), width, cross))
        normed = b.layernorm(x, name + "mlp_norm", name + "mlp_norm.bias", epsilon)
        x = b.add(x, config.decoder.mlp.write(b, name, normed))
    x = b.layernorm(x, "norm", "norm.bias", epsilon)
    return b.finish(b.linear(x, ("embed",), config.vocabulary))


def decoder_shapes(config: SpeechConfig) -> Shapes:
    """Canonical name -> shape of every weight."""
    width, biased = config.width, attention_biases(config)
    shapes: Shapes = {"embed": (config.vocabulary, width), "positions": (config.written, width)}
    shapes |= {"norm": (width,), "norm.bias": (width,)}
    for number in range(config.decoder.layers):
        parts = shapes_of(dict.fromkeys("qkvo", (width, width)), biased)
        parts |= {"cross_" + name: shape for name, shape in parts.items()}
        parts |= config.decoder.mlp.shapes(width)
        for norm in _NORMS:
            parts |= {norm: (width,), norm + ".bias": (width,)}
        shapes |= {f"layers.{number}.{name}": shape for name, shape in parts.items()}
    return shapes
