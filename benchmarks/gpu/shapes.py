"""Llama-shaped models with random weights: shapes, programs, weights, checkpoints, and what a step must read.

Weights are views of one pool of random numbers, so that a model of 16 GB is there at once and loads as a checkpoint
does; on the device each has memory of its own.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenworks.kernels.formats import tensor_bytes
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.kernels.tensor import Tensor

BF16_BYTES = 2
ROPE_BASE = 500000.0


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns of every product's weight of a step."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        for layer in range(self.layers):
            name = f"{layer}."
            yield from ((name + "q", q, self.width), (name + "k", kv, self.width), (name + "v", kv, self.width))
            yield name + "o", self.width, q
            yield from ((name + "gate", self.inner, self.width), (name + "up", self.inner, self.width))
            yield name + "down", self.width, self.inner
        yield "embed" if self.tied else "head", self.vocabulary, self.width

    def weight_bytes(self, bits: float = 16, head_bits: float = 16) -> float:
        """What a step of few tokens reads of them."""
        head = self.vocabulary * self.width
        return sum(rows * columns for _, rows, columns in self.matrices()) * bits / 8 + head * (head_bits - bits) / 8

    def kv_bytes(self, tokens: int, element_bytes: int = BF16_BYTES) -> int:
        """Of so many tokens' K and V."""
        return 2 * self.layers * self.kv_heads * self.head * tokens * element_bytes

    def decode_bytes(self, sequences: int, context: int, bits: float = 16) -> float:
        return self.weight_bytes(bits) + self.kv_bytes(sequences * context)

    def prompt_flops(self, tokens: int) -> float:
        """Of one prompt: its products, and attention to what lies before each token; the head for its last token."""
        body = sum(rows * columns for _, rows, columns in self.matrices()) - self.vocabulary * self.width
        attention = 2 * 2 * self.layers * self.heads * self.head * tokens * (tokens + 1) / 2
        return 2 * body * tokens + attention + 2 * self.vocabulary * self.width


SHAPES = {
    "8B": Shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False),
    "1.7B": Shape(24, 2048, 8192, 32, 32, 64, 49152, tied=True),
    "0.6B": Shape(28, 1024, 3072, 16, 8, 128, 151936, tied=True),
    "135M": Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
}
"""Of Llama-3.1-8B, SmolLM2-1.7B, Qwen3-0.6B and SmolLM2-135M."""


def program(shape: Shape) -> Program:
    b = ProgramBuilder()
    q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    x = b.embed("embed", shape.width)
    for layer in range(shape.layers):
        name = f"{layer}."
        h = b.rmsnorm(x, "norm", 1e-5)
        qkv = b.linear(h, [name + "q", name + "k", name + "v"], q + 2 * kv)
        read = b.attend(
            b.rope(qkv.columns(0, q), shape.head, "rope"),
            b.rope(qkv.columns(q, kv), shape.head, "rope"),
            qkv.columns(q + kv, kv),
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_size=shape.head,
            scale=shape.head**-0.5,
        )
        x = b.add(x, b.linear(read, [name + "o"], shape.width))
        h = b.rmsnorm(x, "norm", 1e-5)
        both = b.linear(h, [name + "gate", name + "up"], 2 * shape.inner)
        h = b.gate(both.columns(0, shape.inner), both.columns(shape.inner, shape.inner), "silu")
        x = b.add(x, b.linear(h, [name + "down"], shape.width))
    h = b.rmsnorm(b.select_rows(x), "norm", 1e-5)
    return b.finish(b.linear(h, ["embed" if shape.tied else "head"], shape.vocabulary))


def random_weights(shape: Shape, form: str = "BF16", seed: int = 0) -> Mapping[str, Tensor]:
    """Of format BF16, or NVFP4 but for embeddings and head."""
    rng = np.random.default_rng(seed)
    sizes = {name: (rows, columns) for name, rows, columns in shape.matrices()}
    sizes["embed"] = (shape.vocabulary, shape.width)
    forms = {name: form if name[0].isdigit() else "BF16" for name in sizes}
    pools = {
        each: _pool(each, max(tensor_bytes(each, s) for n, s in sizes.items() if forms[n] == each), rng)
        for each in set(forms.values())
    }
    found = {}
    for name, size in sizes.items():
        each = forms[name]
        count, step = tensor_bytes(each, size), 36 if each == "NVFP4" else 2
        first = int(rng.integers(0, (pools[each].nbytes - count) // step + 1)) * step
        scales = np.full(size[0], 0.02, np.float32) if each == "NVFP4" else None
        found[name] = Tensor(name, each, size, pools[each][first : first + count], scales)
    frequencies = (ROPE_BASE ** (-np.arange(shape.head // 2) / (shape.head // 2))).astype(np.float32)
    for name, numbers in (("rope", frequencies), ("norm", np.ones(shape.width, np.float32))):
        found[name] = Tensor(name, "F32", numbers.shape, numbers.view(np.uint8))
    return found


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """As Llama's are, in bfloat16, with random weights, and a tokenizer of single letters."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "vocab_size": shape.vocabulary, "hidden_size": shape.width, "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head, "tie_word_embeddings": shape.tied, "rms_norm_eps": 1e-5, "eos_token_id": 2,
        "max_position_embeddings": 131072, "rope_theta": ROPE_BASE,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    letters = {"type": "BPE", "vocab": {chr(33 + at): at for at in range(90)}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": letters, "added_tokens": []}))
    ones, weights = np.full(shape.width, 0x3F80, np.uint16).view(np.uint8), random_weights(shape)
    found = {CHECKPOINT_NAMES.get(name, name): weight for name, weight in weights.items() if weight.format == "BF16"}
    tensors = {name: (each.shape, each.data) for name, each in found.items() if not name[0].isdigit()}
    for name, each in found.items():
        if name[0].isdigit():
            layer, _, which = name.partition(".")
            tensors[f"model.layers.{layer}.{CHECKPOINT_NAMES['.' + which]}"] = each.shape, each.data
    norms = [f"{layer}.{which}_layernorm" for layer in range(shape.layers) for which in ("input", "post_attention")]
    for name in ("model.norm", *(f"model.layers.{each}" for each in norms)):
        tensors[f"{name}.weight"] = (shape.width,), ones
    header, at = {}, 0
    for name, (size, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [at, at + data.nbytes]}
        at += data.nbytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in tensors.values():
            file.write(memoryview(np.ascontiguousarray(data)))


CHECKPOINT_NAMES = {
    "embed": "model.embed_tokens.weight", "head": "lm_head.weight", ".q": "self_attn.q_proj.weight",
    ".k": "self_attn.k_proj.weight", ".v": "self_attn.v_proj.weight", ".o": "self_attn.o_proj.weight",
    ".gate": "mlp.gate_proj.weight", ".up": "mlp.up_proj.weight", ".down": "mlp.down_proj.weight",
}  # fmt: skip


def _pool(form: str, size_bytes: int, rng: np.random.Generator) -> np.ndarray:
    """Somewhat more than `size_bytes` of random weights: bfloat16 of standard deviation 0.02, or blocks of NVFP4 whose
    scales are about one."""
    if form == "BF16":
        normal = (rng.standard_normal(1 << 22, np.float32) * 0.02).view(np.uint32) >> 16
        block = normal.astype(np.uint16).view(np.uint8)
    else:
        blocks = rng.integers(0, 256, (1 << 16, 36), np.uint8)
        blocks[:, :4] = rng.integers(52, 60, (1 << 16, 4))
        block = blocks.reshape(-1)
    return np.tile(block, 1 + -(-size_bytes // block.nbytes))
