"""Writes the folders llm-compressor-* beside it with LLM Compressor 0.14, and what it makes of them again.

It needs an environment of its own (transformers below 5.18, compressed-tensors 0.19):
python tests/quant/theirs/write_with_llm_compressor.py
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors import ModelCompressor
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from their_model import CHECKED, model
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
MODIFIERS = {
    "nvfp4": QuantizationModifier(targets="Linear", scheme="NVFP4", ignore=["lm_head"]),
    "int8": GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    "fp8": QuantizationModifier(targets="Linear", scheme="FP8", ignore=["lm_head"]),
}
TOKENS = torch.randint(0, 32, (8, 48), generator=torch.Generator().manual_seed(1)).tolist()


def write(name: str, folder: Path) -> None:
    letters = Tokenizer(models.BPE({chr(65 + number): number for number in range(32)}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="A")
    data = Dataset.from_list([{"input_ids": tokens, "attention_mask": [1] * len(tokens)} for tokens in TOKENS])
    with tempfile.TemporaryDirectory() as original:
        made = model(Path(original))
        oneshot(
            model=made, recipe=MODIFIERS[name], processor=tokenizer, dataset=data,
            num_calibration_samples=len(TOKENS), max_seq_length=len(TOKENS[0]),
        )  # fmt: skip
        made.save_pretrained(folder, save_compressed=True)
    for extra in ("generation_config.json", "recipe.yaml"):
        (folder / extra).unlink(missing_ok=True)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ModelCompressor.from_pretrained_model(again).decompress_model(again)
    expected = {module: again.get_submodule(module).weight.detach().float().numpy() for module in CHECKED}
    np.savez_compressed(folder / "expected.npz", **expected)


for name in MODIFIERS:
    folder = HERE / f"llm-compressor-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    write(name, folder)
