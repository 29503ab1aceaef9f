"""LoRA adapters from PEFT folders: each makes of its base the model that transformers has with W + scale * B @ A."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_adapters import FUSED_MAPS, MAPS, merge, write_adapter
from small_checkpoints import BLOCK_TOKENS, Float32, reference_logits, reference_model, write_decoder

from tokenworks.kernels.backend import Backend, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.adapters import read_adapter
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.protocol.errors import ModelError

TARGETS = {
    "phi3": FUSED_MAPS,
    "glm4": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt-neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}
IDS = [(7 * i * i + 3) % 101 for i in range(19)]


def our_logits(base: Path, adapters: list[Path], backend: Backend) -> list[Float32]:
    """Of IDS through each adapter, and through none: all in one step."""
    checkpoint = open_checkpoint(base)
    count, blocks = len(adapters) + 1, -(-len(IDS) // BLOCK_TOKENS)
    rows = count * len(IDS)
    limits = Limits(rows, count, rows, count * blocks, BLOCK_TOKENS, "float32", 2)
    model = backend.compile(checkpoint.program(), checkpoint.tensors, limits)
    for slot, folder in enumerate(adapters):
        model.load_adapter(slot, read_adapter(folder, checkpoint))
    logits = model.run(
        StepBatch(
            np.array(IDS * count, np.int32),
            np.array([*range(len(IDS))] * count, np.int32),
            np.arange(count + 1, dtype=np.int32) * len(IDS),
            np.arange(count * blocks, dtype=np.int32).reshape(count, blocks),
            np.arange(rows, dtype=np.int32),
            adapters=np.array([*range(len(adapters)), -1], np.int32),
        )
    )
    return list(logits.reshape(count, len(IDS), -1).copy())


def base_model(folder: Path, name: str = "llama") -> Path:
    write_decoder(name, folder)
    return folder


@pytest.mark.parametrize("backend", [CpuBackend(), ReferenceBackend()], ids=lambda each: each.name)
@pytest.mark.parametrize(
    "name", ["llama", "llama-tied-biased", "qwen3", "phi3", "gemma", "granite", "gemma4", "cohere2", "gpt-neox", "glm4"]
)
def test_logits_are_those_of_the_merged_model(name: str, backend: Backend, tmp_path: Path) -> None:
    base, targets = base_model(tmp_path / "base", name), TARGETS.get(name, MAPS)
    folders = [
        write_adapter(tmp_path / str(seed), reference_model(base), seed=seed, rank=rank, targets=targets)
        for seed, rank in enumerate((1, 4, 19))
    ]
    ours = our_logits(base, folders, backend)
    plain = reference_logits(reference_model(base), IDS)
    np.testing.assert_allclose(ours[-1], plain, atol=1e-4)
    for folder, got in zip(folders, ours, strict=False):
        want = reference_logits(merge(reference_model(base), folder, 2.0), IDS)
        assert np.abs(want - plain).max() > 0.1
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_sixteen_at_once_are_each_alone_bit_for_bit(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    model = reference_model(base)
    folders = [
        write_adapter(tmp_path / str(n), model, seed=n, rank=1 + n, dtype=(torch.bfloat16, torch.float16)[n % 2])
        for n in range(16)
    ]
    together = our_logits(base, folders, CpuBackend())
    for folder, rows in zip(folders, together, strict=False):
        np.testing.assert_array_equal(our_logits(base, [folder], CpuBackend())[0], rows)
    assert len({rows.tobytes() for rows in together}) == 17


def test_scales_and_ranks_by_pattern(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    how = {"rank_pattern": {"k_proj": 7}, "alpha_pattern": {r".*mlp\.up_proj": 3}, "use_rslora": True, "lora_alpha": 5}
    folder = write_adapter(tmp_path / "a", reference_model(base), seed=1, rank=4, **how)
    scales = {name: 5 / math.sqrt(4) for name in MAPS} | {"k_proj": 5 / math.sqrt(7), "up_proj": 3 / math.sqrt(4)}
    want = reference_logits(merge(reference_model(base), folder, scales), IDS)
    np.testing.assert_allclose(our_logits(base, [folder], CpuBackend())[0], want, atol=1e-4)


def test_as_peft_itself_saves_and_runs_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = base_model(tmp_path / "base")
    config = peft.LoraConfig(
        r=5, lora_alpha=9, target_modules=["q_proj", "down_proj"], init_lora_weights=False, use_rslora=True,
        layers_to_transform=[0, 2], rank_pattern={"layers.2.mlp.down_proj": 3},
    )  # fmt: skip
    torch.manual_seed(8)
    model = peft.get_peft_model(reference_model(base), config)
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        want = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(want - reference_logits(reference_model(base), IDS)).max() > 0.1
    np.testing.assert_allclose(our_logits(base, [tmp_path / "a"], CpuBackend())[0], want, atol=1e-4)


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


_Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
_LATE = _Q.replace("layers.1", "layers.9")
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "dora": (lambda f: _edit_config(f, use_dora=True), "adapter_config.json: use_dora is True: DoRA"),
    "biases": (lambda f: _edit_config(f, bias="all"), "bias is 'all'"),
    "modules": (lambda f: _edit_config(f, modules_to_save=["lm_head"]), "modules_to_save is ['lm_head']"),
    "kind": (lambda f: _edit_config(f, peft_type="IA3"), "peft_type is 'IA3'"),
    "rank": (lambda f: _edit_config(f, r=300), "r is 300; an integer from 1 to 256"),
    "shape": (lambda f: _edit_config(f, r=3), "; by the adapter's config and the model it should have [3, "),
    "pattern": (lambda f: _edit_config(f, rank_pattern={"(": 3}), "rank_pattern: '(' is no regular expression"),
    "side": (lambda f: _edit_tensors(f, lambda t: t.pop(_Q.format("B"))), f"tensor {_Q.format('B')!r} is missing"),
    "map": (
        lambda f: _edit_tensors(f, lambda t: (t.pop(_Q.format("A")), t.pop(_Q.format("B")))),
        f"tensor {_Q.format('A')!r} is missing",
    ),
    "layer": (
        lambda f: _edit_tensors(f, lambda t: t.update({_LATE.format("A"): torch.zeros(4, 40)})),
        "belongs to 'model.layers.9.self_attn.q_proj', which is no linear map of this model",
    ),
    "foreign": (
        lambda f: _edit_tensors(f, lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(4, 40)})),
        "tensor 'base_model.model.lm_head.weight' is unexpected",
    ),
    "dtype": (
        lambda f: _edit_tensors(f, lambda t: t.update({_Q.format("A"): torch.zeros(4, 40, dtype=torch.int8)})),
        "has type I8, which is not supported",
    ),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "it has no adapter_model.safetensors"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    folder = write_adapter(tmp_path / "a", reference_model(base), seed=1)
    change, message = WRONG[what]
    change(folder)
    with pytest.raises(ModelError) as error:
        read_adapter(folder, open_checkpoint(base))
    assert message in error.value.message
    assert str(folder) in error.value.message


def test_a_gguf_model_takes_the_adapters_of_its_family(tmp_path: Path, smollm2: Path) -> None:
    """PEFT names weights as the family's safetensors have them, whatever the base is served from."""
    checkpoint = open_checkpoint(smollm2)
    (tmp_path / "a").mkdir()
    shapes = {"q_proj": (576, 576), "k_proj": (192, 576)}
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{side}.weight": torch.randn(*shape)
        for layer in range(30)
        for name, (rows, columns) in shapes.items()
        for side, shape in (("A", (2, columns)), ("B", (rows, 2)))
    }
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": list(shapes)}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    adaptation = read_adapter(tmp_path / "a", checkpoint)
    assert set(adaptation) == {f"layers.{layer}.{m}" for layer in range(30) for m in "qk"}
    share = adaptation["layers.3.q"]
    want = tensors["base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight"].numpy()
    np.testing.assert_array_equal(share.up.data.view(np.float32).reshape(576, 2), want)
    assert share.scale == 0.5
    assert share.down.shape == (2, 576)
