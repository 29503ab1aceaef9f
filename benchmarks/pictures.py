"""How long a picture takes to encode, and by how much the longest piece of it delays running texts.

    python benchmarks/pictures.py [--threads N]

SigLIP encoders of published shapes with random weights in bfloat16, beside transformers' in float32 on as many threads:
SmolVLM 256M's, one tile of 512 x 512 (1,024 patches, 64 tokens), and one layer's worth of Gemma 3's, 896 x 896
(4,096 patches). Times are the least of several runs.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.vision.config import VisionConfig
from tokenworks.models.vision.connectors import Shuffle
from tokenworks.models.vision.encoder import vision_program, vision_shapes
from tokenworks.models.vision.pixels import Pixels
from tokenworks.protocol.messages import Picture

SMOLVLM = VisionConfig(
    patch=16, width=768, heads=12, layers=12, mlp_width=3072, activation="gelu_tanh", norm_epsilon=1e-6,
    positions="nearest", table_side=32, merge=4, connector=Shuffle(), most_patches=1024, rescale=1 / 255,
    mean=(0.5,) * 3, std=(0.5,) * 3,
)  # fmt: skip
GEMMA3 = replace(SMOLVLM, patch=14, width=1152, heads=16, layers=1, mlp_width=4304, table_side=64, most_patches=4096)
RUNS = 3


def ours(config: VisionConfig, threads: int) -> tuple[float, float]:
    """Seconds of a picture, and of its longest part."""
    random = np.random.default_rng(1)
    weights = {}
    for name, shape in vision_shapes(config, 576).items():
        values = (random.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
        kind = "BF16" if len(shape) > 1 else "F32"
        data = (values.view(np.uint32) >> 16).astype(np.uint16) if kind == "BF16" else values
        weights[name] = Tensor(name, kind, shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
    limits = Limits(config.most_patches, 1, 1, 1, 1, "float32", threads)
    encoder = CpuBackend().compile(vision_program(config, 576), weights, limits)
    side = config.table_side * config.patch
    tokens = config.table_side // config.merge
    pixels = random.integers(0, 256, side * side * 3).astype(np.uint8).tobytes()
    step = Pixels(config, None).step(Picture(0, tokens, tokens, side, side, pixels, b""))
    parts = np.full(encoder.parts, np.inf)
    for _ in range(RUNS):
        for part in range(encoder.parts):
            start = time.perf_counter()
            encoder.run(step.batch, part)
            parts[part] = min(parts[part], time.perf_counter() - start)
    return float(parts.sum()), float(parts.max())


@torch.no_grad()
def theirs(config: VisionConfig, threads: int) -> float:
    torch.set_num_threads(threads)
    side = config.table_side * config.patch
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.width, num_attention_heads=config.heads, num_hidden_layers=config.layers,
            intermediate_size=config.mlp_width, image_size=side, patch_size=config.patch, vision_use_head=False,
        )
    ).eval()  # fmt: skip
    pixels = torch.randn(1, 3, side, side)
    best = np.inf
    for _ in range(RUNS):
        start = time.perf_counter()
        model(pixel_values=pixels)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    for name, config in (("SmolVLM 256M, one tile", SMOLVLM), ("Gemma 3, one layer", GEMMA3)):
        whole, longest = ours(config, threads)
        reference = theirs(config, threads)
        print(
            f"{name}: {whole:.3f} s, {reference / whole:.2f} times as fast as transformers ({reference:.3f} s); "
            f"longest part {longest * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
