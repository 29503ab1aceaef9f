"""The layout of compressed-tensors (github.com/vllm-project/compressed-tensors), which vLLM, transformers and SGLang
load: a folder with quantization_config in config.json. Checked against version 0.20."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenworks.quant.checkpoints.safetensors import Stored, float32
from tokenworks.quant.schemes import Bytes, Quantised, SchemeName

_FLOAT4 = {"num_bits": 4, "type": "float"}
_WEIGHTS: dict[SchemeName, dict[str, Any]] = {
    "nvfp4": {**_FLOAT4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
    "mxfp4": {**_FLOAT4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    "int8": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
}
_FORMATS: dict[SchemeName, str] = {
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "int8": "int-quantized",
    "fp8": "float-quantized",
}


def stored(module: str, weight: Quantised) -> dict[str, Stored]:
    """The tensors that stand for `module`.weight."""
    shape = weight.codes.shape
    match weight.scheme:
        case "nvfp4":
            assert weight.block_scales is not None
            return {
                f"{module}.weight_packed": Stored("U8", (shape[0], shape[1] // 2), pairs(weight.codes)),
                f"{module}.weight_scale": Stored("F8_E4M3", weight.block_scales.shape, weight.block_scales),
                f"{module}.weight_global_scale": float32(np.float32(1) / weight.row_scales[:1]),
            }
        case "mxfp4":
            assert weight.block_scales is not None
            return {
                f"{module}.weight_packed": Stored("U8", (shape[0], shape[1] // 2), pairs(weight.codes)),
                f"{module}.weight_scale": Stored("U8", weight.block_scales.shape, weight.block_scales),
            }
        case "int8" | "fp8":
            dtype = "I8" if weight.scheme == "int8" else "F8_E4M3"
            return {
                f"{module}.weight": Stored(dtype, shape, weight.codes),
                f"{module}.weight_scale": float32(weight.row_scales[:, None]),
            }


def config(schemes: Mapping[str, SchemeName], kept: list[str]) -> dict[str, Any]:
    """config.json's quantization_config, for modules by name; `kept` are linear modules that stay as they are."""
    used = sorted(set(schemes.values()))
    groups = {}
    for number, scheme in enumerate(used):
        targets = sorted(module for module, each in schemes.items() if each == scheme)
        groups[f"group_{number}"] = {
            "targets": targets,
            "weights": {**_WEIGHTS[scheme], "symmetric": True, "dynamic": False},
            "input_activations": None,
            "output_activations": None,
            "format": _FORMATS[scheme],
        }
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[used[0]] if len(used) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(kept),
        "kv_cache_scheme": None,
    }


def pairs(codes: Bytes) -> Bytes:
    """[out, in] 4-bit codes to [out, in / 2] bytes, the even column in the low nibble."""
    return np.asarray(codes[:, 0::2] | codes[:, 1::2] << 4, np.uint8)
