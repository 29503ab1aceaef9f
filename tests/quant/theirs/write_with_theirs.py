"""Writes the folders beside it with NVIDIA's ModelOpt 0.47 and compressed-tensors 0.20, and what those libraries make
of them again. Run it where they and transformers are installed: python tests/quant/theirs/write_with_theirs.py"""

import shutil
import sys
import tempfile
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import load_file
from their_model import CHECKED, model

HERE = Path(__file__).parent
MODELOPT = {
    "nvfp4": mtq.NVFP4_DEFAULT_CFG,
    "fp8": mtq.FP8_DEFAULT_CFG,
    "fp8-rows": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
    "int8": mtq.INT8_WEIGHT_ONLY_CFG,
}
COMPRESSED = {"nvfp4": "NVFP4A16", "mxfp4": "MXFP4A16", "int8": "W8A8", "fp8": "FP8_DYNAMIC"}


def made_model() -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        return model(Path(folder))


def with_modelopt(name: str, folder: Path) -> None:
    quantised = mtq.quantize(made_model(), MODELOPT[name], lambda m: m(torch.arange(32)[None]))
    export_hf_checkpoint(quantised, export_dir=folder)
    tensors = load_file(folder / "model.safetensors")
    expected = {}
    for module in CHECKED:
        codes, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"]
        if name == "nvfp4":
            shape = torch.Size((codes.shape[0], 2 * codes.shape[1]))
            numbers = NVFP4QTensor(shape, torch.float32, codes).dequantize(
                torch.float32, scale=scale, double_scale=tensors[f"{module}.weight_scale_2"], block_sizes={-1: 16}
            )
        else:  # what their fake quantisation computes: codes times scales
            numbers = codes.float() * (scale[:, None] if scale.ndim else scale)
        expected[module] = numbers.numpy()
    np.savez_compressed(folder / "expected.npz", **expected)


def with_compressed_tensors(name: str, folder: Path) -> None:
    made = made_model()
    config = QuantizationConfig(config_groups={COMPRESSED[name]: ["Linear"]}, ignore=["lm_head"])
    apply_quantization_config(made, config)
    for module in made.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        weight = module.weight.data.float()
        if scheme.weights.group_size:
            largest = weight.reshape(len(weight), -1, scheme.weights.group_size).abs().amax(-1)
            if name == "nvfp4":
                whole = 448 * 6 / weight.abs().max()
                module.weight_global_scale.data = whole.reshape(module.weight_global_scale.shape)
                scale = (largest / 6 * whole).to(torch.float8_e4m3fn)
            else:
                scale = torch.exp2(torch.floor(torch.log2(largest)) - 2)
        else:
            scale = weight.abs().amax(1, keepdim=True) / (127 if name == "int8" else 448)
        module.weight_scale.data = scale.to(module.weight_scale.dtype).reshape(module.weight_scale.shape)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(made)
    made.save_pretrained(folder)
    compressor.update_config(folder)
    compressor.decompress_model(made)
    expected = {module: made.get_submodule(module).weight.detach().float().numpy() for module in CHECKED}
    np.savez_compressed(folder / "expected.npz", **expected)


for library, names, write in (
    ("modelopt", MODELOPT, with_modelopt),
    ("compressed-tensors", COMPRESSED, with_compressed_tensors),
):
    for name in names:
        if len(sys.argv) > 1 and sys.argv[1] not in f"{library}-{name}":
            continue
        folder = HERE / f"{library}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        write(name, folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
