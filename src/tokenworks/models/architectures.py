"""The table of architectures, by what their files call them. A new one is a file in models/families/, or a few lines in
one, and a row here."""

from tokenworks.models.families import (
    bert,
    deepseek,
    gemma,
    gemma_vision,
    glm_moe,
    gpt_oss,
    hybrid,
    idefics3,
    llama,
    mamba,
    mixtral,
    olmo,
    qwen,
    qwen_moe,
    qwen_next,
    qwen_vision,
)

HF_ARCHITECTURES = {
    "llama": llama.LLAMA,
    "mistral": llama.MISTRAL,
    "ministral": llama.MISTRAL,
    "smollm3": llama.SMOLLM3,
    "phi3": llama.PHI3,
    "granite": llama.GRANITE,
    "olmo2": olmo.OLMO2,
    "olmo3": olmo.OLMO3,
    "mamba2": mamba.MAMBA2,
    "nemotron_h": mamba.NEMOTRON_H,
    "bamba": hybrid.BAMBA,
    "granitemoehybrid": hybrid.GRANITE_HYBRID,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "olmoe": olmo.OLMOE,
    "gpt_oss": gpt_oss.GPT_OSS,
    "glm4_moe": glm_moe.GLM4_MOE,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "mixtral": mixtral.MIXTRAL,
    "qwen2_moe": qwen_moe.QWEN2_MOE,
    "qwen3_moe": qwen_moe.QWEN3_MOE,
    "qwen3_next": qwen_next.QWEN3_NEXT,
    "qwen3_5_text": qwen_next.QWEN3_5,
    "qwen3_5_moe_text": qwen_next.QWEN3_5_MOE,
    "deepseek_v2": deepseek.DEEPSEEK_V2,
    "deepseek_v3": deepseek.DEEPSEEK_V3,
    "kimi_k2": deepseek.DEEPSEEK_V3,
    "glm4_moe_lite": deepseek.GLM4_MOE_LITE,
    "gemma3_text": gemma.GEMMA3,
    "gemma3": gemma_vision.GEMMA3_VISION,
    "qwen2_5_vl": qwen_vision.QWEN2_5_VL,
    "qwen3_vl": qwen_vision.QWEN3_VL,
    "idefics3": idefics3.IDEFICS3,
    "smolvlm": idefics3.IDEFICS3,
    "bert": bert.BERT,
    "roberta": bert.ROBERTA,
    "xlm-roberta": bert.ROBERTA,
    "modernbert": bert.MODERNBERT,
}
"""By config.json's model_type."""

GGUF_ARCHITECTURES = {
    "llama": mixtral.LLAMA_GGUF,
    "qwen2": qwen.QWEN2_GGUF,
    "qwen3": qwen.QWEN3_GGUF,
    "gpt-oss": gpt_oss.GPT_OSS_GGUF,
    "glm4moe": glm_moe.GLM4_MOE_GGUF,
    "gemma": gemma.GEMMA_GGUF,
    "gemma2": gemma.GEMMA2_GGUF,
    "qwen2moe": qwen_moe.QWEN2_MOE_GGUF,
    "qwen3moe": qwen_moe.QWEN3_MOE_GGUF,
    "gemma3": gemma.GEMMA3_GGUF,
}
"""By general.architecture."""

GGUF_NAMED_AS = {
    "gpt-oss": "gpt_oss",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
    "glm4moe": "glm4_moe",
}
"""By general.architecture, where it differs: the model_type whose checkpoints have the same weights."""
