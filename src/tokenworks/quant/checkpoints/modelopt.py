"""The layout of NVIDIA's ModelOpt (github.com/NVIDIA/Model-Optimizer), which TensorRT-LLM, vLLM and SGLang load: a
folder with hf_quant_config.json, its like in config.json, and scales as multipliers. Checked against version 0.47."""

from collections.abc import Mapping
from typing import Any

from tokenworks.protocol.errors import InvalidRequest
from tokenworks.quant.checkpoints.compressed_tensors import pairs
from tokenworks.quant.checkpoints.safetensors import Stored, float32
from tokenworks.quant.schemes import Quantised, SchemeName

# Weights alone: what runs them chooses how to treat activations.
_ALGORITHMS: dict[SchemeName, dict[str, Any]] = {
    "nvfp4": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    "int8": {"quant_algo": "W8A16"},
    "fp8": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
}


def stored(module: str, weight: Quantised) -> dict[str, Stored]:
    """The tensors that stand for `module`.weight. Raises InvalidRequest for MXFP4."""
    shape = weight.codes.shape
    match weight.scheme:
        case "nvfp4":
            assert weight.block_scales is not None
            return {
                f"{module}.weight": Stored("U8", (shape[0], shape[1] // 2), pairs(weight.codes)),
                f"{module}.weight_scale": Stored("F8_E4M3", weight.block_scales.shape, weight.block_scales),
                f"{module}.weight_scale_2": float32(weight.row_scales[0].reshape(())),
            }
        case "mxfp4":
            raise InvalidRequest(
                "ModelOpt's layout has no MXFP4 of weights alone: use --layout compressed-tensors or gguf."
            )
        case "int8" | "fp8":
            return {
                f"{module}.weight": Stored("I8" if weight.scheme == "int8" else "F8_E4M3", shape, weight.codes),
                f"{module}.weight_scale": float32(weight.row_scales),
            }


def hf_quant_config(schemes: Mapping[str, SchemeName], kept: list[str], version: str) -> dict[str, Any]:
    """hf_quant_config.json, for modules by name; `kept` are modules that stay as they are."""
    used = sorted(set(schemes.values()))
    quantization: dict[str, Any] = {"kv_cache_quant_algo": None}
    if len(used) == 1:
        quantization |= {**_ALGORITHMS[used[0]], "exclude_modules": sorted(kept)}
    else:
        quantization |= {
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {module: _ALGORITHMS[scheme] for module, scheme in sorted(schemes.items())},
            "exclude_modules": sorted(kept),
        }
    return {"producer": {"name": "tokenworks", "version": version}, "quantization": quantization}


def config(hf_quant: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's quantization_config, which says the same."""
    section = dict(hf_quant["quantization"])
    section["ignore"] = section.pop("exclude_modules")
    return {**section, "quant_method": "modelopt", "producer": hf_quant["producer"]}
