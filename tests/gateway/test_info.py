"""What the server says about its models, and text from token ids."""

import asyncio
from pathlib import Path

import httpx
import openai
from factory_process import CONTEXT_TOKENS

from tokenworks.gateway.serving import TextModel
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.messages import Ready


def test_models_say_how_much_they_take(client: openai.OpenAI, http: httpx.Client) -> None:
    assert client.models.retrieve("smollm2").max_model_len == CONTEXT_TOKENS
    client.embeddings.create(model="minilm", input="It starts on demand.")
    models = {model["id"]: model["max_model_len"] for model in http.get("/v1/models").json()["data"]}
    assert models["smollm2"] == CONTEXT_TOKENS
    assert models["minilm"] == client.models.retrieve("minilm").max_model_len > 0


def test_a_million_token_ids_become_text_while_others_are_served(smollm2: Path) -> None:
    ready = Ready("generate", CONTEXT_TOKENS, 49152, 0, 0, {})
    model = TextModel("smollm2", load_tokenizer(smollm2), ready, None)
    words = model.tokenizer.encode("Und der Haifisch, der hat Zähne – ", special=False)
    turns = 0

    async def scenario() -> str:
        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        busy = asyncio.create_task(others())
        text = await model.decode(words * (2**19 // len(words)))
        busy.cancel()
        return text

    text = asyncio.run(scenario())
    assert text == "Und der Haifisch, der hat Zähne – " * (2**19 // len(words))
    assert turns > 100  # a decoder that keeps the interpreter's lock leaves a handful
