"""LoRA adapters through the real server: named as models, loaded and unloaded while others run."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from running_factory import Factory, start
from safetensors.numpy import save_file

PROMPT = "Once upon a time there was a fox who"


def write(folder: Path, seed: int) -> Path:
    """Of SmolLM2's attention."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(30):
        for name, (rows, columns) in {"q_proj": (576, 576), "v_proj": (192, 576)}.items():
            start = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_"
            tensors[f"{start}A.weight"] = rng.standard_normal((4, columns)).astype(np.float32) / 24
            tensors[f"{start}B.weight"] = rng.standard_normal((rows, 4)).astype(np.float32) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def adapted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    folder = tmp_path_factory.mktemp("adapters")
    write(folder / "second", 2)
    outside = write(tmp_path_factory.mktemp("elsewhere") / "first", 1)
    (folder / "link").symlink_to(outside)
    script = Path(__file__).with_name("adapter_factory.py")
    factory = start(script, smollm2, outside, folder, tmp_path_factory.mktemp("data"))
    yield factory
    factory.process.send_signal(signal.SIGTERM)
    assert factory.process.wait(20) == 0


def told(client: openai.OpenAI, model: str) -> str:
    reply = client.completions.create(model=model, prompt=PROMPT, max_tokens=16, temperature=0)
    assert reply.model == model
    return reply.choices[0].text


def post(factory: Factory, what: str, **body: str) -> httpx.Response:
    return httpx.post(f"{factory.url}/v1/{what}_lora_adapter", json=body, timeout=30)


def test_adapters_are_models_that_come_and_go(adapted: Factory) -> None:
    client = openai.OpenAI(base_url=f"{adapted.url}/v1", api_key="any", max_retries=0)
    cards = {card["id"]: card["parent"] for card in httpx.get(f"{adapted.url}/v1/models").json()["data"]}
    assert cards == {"base": None, "first": "base"}
    base, first = told(client, "base"), told(client, "first")
    assert base != first
    assert post(adapted, "load", lora_name="second", lora_path="second").status_code == 200
    second = told(client, "second")
    assert len({base, first, second}) == 3
    assert client.models.retrieve("second").model_dump()["parent"] == "base"
    assert "served already" in post(adapted, "load", lora_name="first", lora_path="second").text
    with client.completions.create(
        model="second", prompt=PROMPT, max_tokens=120, temperature=0, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        deltas = iter(stream)
        text = next(deltas).choices[0].text
        assert post(adapted, "unload", lora_name="second").status_code == 200
        with pytest.raises(openai.NotFoundError, match="Served: base, first"):
            told(client, "second")
        adapted.workers()[0].kill()  # what runs goes on in the next worker, with its adapter
        ends = [delta.choices[0] for delta in deltas if delta.choices]
    text += "".join(choice.text for choice in ends)
    assert ends[-1].finish_reason == "length"
    assert text.startswith(second)
    assert (told(client, "base"), told(client, "first")) == (base, first)
    assert post(adapted, "unload", lora_name="second").status_code == 404


def test_only_what_the_configuration_allows_is_opened(adapted: Factory) -> None:
    for path in ("../elsewhere", "/etc", "link"):
        reply = post(adapted, "load", lora_name="x", lora_path=path)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "lora_path")
    reply = post(adapted, "load", lora_name="x", lora_path="nothing")
    assert reply.status_code == 400
    assert "not an adapter's folder" in reply.json()["error"]["message"]
    names = [card["id"] for card in httpx.get(f"{adapted.url}/v1/models").json()["data"]]
    assert names == ["base", "first"]


def test_nothing_is_loaded_without_a_folder(factory: Factory) -> None:
    reply = post(factory, "load", lora_name="x", lora_path="x")
    assert reply.status_code == 400
    assert "adapters_folder" in reply.json()["error"]["message"]
