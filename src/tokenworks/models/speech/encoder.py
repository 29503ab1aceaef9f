"""Thirty seconds of a recording through Whisper's encoder (arXiv 2212.04356, 2.2), and the weights it needs.

Two convolutions of three taps come first, the second with a stride of two. A row of the program's input holds what one
row behind them sees: three overlapping windows of the spectrogram, so that both are linear maps. The program pauses
behind every attention and every feed-forward network: between its parts a worker decodes text.
"""

import numpy as np

from tokenworks.kernels.backend import Float32
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.models.parts.part import Shapes, linear, shapes_of
from tokenworks.models.speech.config import SpeechConfig

TAPS = 3
STRIDE = 2


def encoder_program(config: SpeechConfig) -> Program:
    """Rows as `frames_of` makes them -> [heard, width]."""
    b = ProgramBuilder()
    width, of_window, epsilon = config.width, TAPS * config.bins, config.norm_epsilon
    given = b.input(TAPS * of_window + 1)
    seen = b.buffer(TAPS * width)
    for tap in range(TAPS):
        window = given.columns(tap * of_window, of_window)
        into = seen.columns(tap * width, width)
        made = b.linear(window, ("speech.conv1",), width, biases=("speech.conv1.bias",), into=None if not tap else into)
        if not tap:  # before the first window lies nothing, which a bias would change
            b.scale_rows(made, given.columns(TAPS * of_window, 1), into=into)
    x = b.linear(b.activate(seen, "gelu"), ("speech.conv2",), width, biases=("speech.conv2.bias",))
    x = b.add(b.activate(x, "gelu"), b.embed("speech.positions", width, index="position"))
    size, biased = width // config.encoder.heads, attention_biases(config)
    for number in range(config.encoder.layers):
        name = f"speech.layers.{number}."
        normed = b.layernorm(x, name + "attention_norm", name + "attention_norm.bias", epsilon)
        qkv = linear(b, name, normed, ("q", "k", "v"), 3 * width, biased)
        q, k, v = (qkv.columns(i * width, width) for i in range(3))
        heads = config.encoder.heads
        read = b.attend(q, k, v, heads=heads, kv_heads=heads, head_size=size, scale=size**-0.5, cached=False)
        x = b.add(x, linear(b, name, read, ("o",), width, biased))
        b.pause()
        normed = b.layernorm(x, name + "mlp_norm", name + "mlp_norm.bias", epsilon)
        x = b.add(x, config.encoder.mlp.write(b, name, normed))
        b.pause()
    return b.finish(b.layernorm(x, "speech.norm", "speech.norm.bias", epsilon))


def encoder_shapes(config: SpeechConfig) -> Shapes:
    """Canonical name -> shape of every weight."""
    width = config.width
    shapes: Shapes = {
        "conv1": (width, TAPS * config.bins),
        "conv1.bias": (width,),
        "conv2": (width, TAPS * width),
        "conv2.bias": (width,),
        "positions": (config.heard, width),
        "norm": (width,),
        "norm.bias": (width,),
    }
    for number in range(config.encoder.layers):
        name = f"layers.{number}."
        parts = shapes_of(dict.fromkeys("qkvo", (width, width)), attention_biases(config))
        parts |= config.encoder.mlp.shapes(width)
        for norm in ("attention_norm", "mlp_norm"):
            parts |= {norm: (width,), norm + ".bias": (width,)}
        shapes |= {name + part: shape for part, shape in parts.items()}
    return {"speech." + name: shape for name, shape in shapes.items()}


def attention_biases(config: SpeechConfig) -> frozenset[str]:
    """Which of the maps of every attention have one."""
    return frozenset("qkvo" if config.key_biased else "qvo")


def frames_of(mels: Float32, config: SpeechConfig) -> Float32:
    """[heard, inputs of the program] of a spectrogram [frames, bins], of thirty seconds at most; silence follows it."""
    frames = STRIDE * config.heard
    padded = np.zeros((frames + 2 * (TAPS // 2), config.bins), np.float32)
    padded[1 : 1 + len(mels)] = mels
    windows = np.lib.stride_tricks.sliding_window_view(padded, TAPS, axis=0).swapaxes(1, 2)  # [frames, taps, bins]
    places = STRIDE * np.arange(config.heard)[:, None] + np.arange(TAPS) - 1
    rows = np.where((places >= 0)[:, :, None, None], windows[places], 0).reshape(config.heard, -1)
    return np.concatenate([rows, (places[:, :1] >= 0)], axis=1, dtype=np.float32)
