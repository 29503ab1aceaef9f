"""Encoders from GGUF files: vectors and tokens are those of the models' own files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_checkpoints import randomise
from small_encoders import ENCODERS, write_encoder
from test_encoders import TEXTS, encode
from test_tokenizer import TEXTS as STRINGS
from transformers import AutoModel, NomicBertConfig, XLMRobertaTokenizer

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.files.gguf import open_gguf
from tokenworks.models.text.gguf_tokenizer import build_tokenizer
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.errors import ModelError

ARCHS = {
    "bert": gguf.MODEL_ARCH.BERT,
    "roberta": gguf.MODEL_ARCH.BERT,
    "nomic": gguf.MODEL_ARCH.NOMIC_BERT,
    "modernbert": gguf.MODEL_ARCH.MODERN_BERT,
}
_NOMIC = NomicBertConfig(
    vocab_size=97, hidden_size=36, num_hidden_layers=2, num_attention_heads=3, intermediate_size=50,
    max_position_embeddings=64,
)  # fmt: skip


def write_gguf(folder: Path, name: str, path: Path, config: Any, *, pooling: int = 0) -> Any:
    """As llama.cpp's converter does; returns the writer, to which nothing has been written yet."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHS[name]])
    writer.add_context_length(62 if name == "roberta" else config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.norm_eps if name == "modernbert" else config.layer_norm_eps)
    if pooling:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    if name == "nomic":
        writer.add_rope_freq_base(1e3)
    if name == "modernbert":
        writer.add_sliding_window(config.local_attention)
        writer.add_sliding_window_pattern(3)
        for kind, add in (("full", writer.add_rope_freq_base), ("sliding", writer.add_rope_freq_base_swa)):
            add(config.rope_parameters[f"{kind}_attention"]["rope_theta"])
    names = gguf.get_tensor_name_map(ARCHS[name], config.num_hidden_layers)
    for theirs, weight in load_file(folder / "model.safetensors").items():
        if "pooler" in theirs or "position_ids" in theirs:
            continue
        if name == "roberta" and "position_embeddings" in theirs:
            weight = weight[2:]
        ours = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert ours, theirs
        writer.add_tensor(ours, np.ascontiguousarray(weight))
    return writer


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("pooling", [0, 1, 2])
@pytest.mark.parametrize("name", ARCHS)
def test_vectors_are_those_of_transformers(name: str, pooling: int, tmp_path: Path) -> None:
    if name == "nomic":
        torch.manual_seed(1)
        model = AutoModel.from_config(_NOMIC, attn_implementation="eager").eval()
        randomise(model)
        model.save_pretrained(tmp_path)
    else:
        model = write_encoder(name, tmp_path)
    config = _NOMIC if name == "nomic" else ENCODERS[name]
    finish(write_gguf(tmp_path, name, tmp_path / "m.gguf", config, pooling=pooling))
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            hidden = model(torch.tensor(text[None])).last_hidden_state[0].numpy()
        vector = hidden[0] if pooling == 2 else hidden.mean(axis=0)
        expected.append(vector / np.linalg.norm(vector))
    vectors = encode(tmp_path / "m.gguf", CpuBackend(), TEXTS)
    assert np.abs(np.subtract(*vectors[:2])).max() > 0.1
    np.testing.assert_allclose(vectors, np.stack(expected), atol=2e-5)


def test_scores_and_last_tokens_are_refused(tmp_path: Path) -> None:
    write_encoder("bert", tmp_path)
    for pooling in (3, 4):
        finish(write_gguf(tmp_path, "bert", tmp_path / f"{pooling}.gguf", ENCODERS["bert"], pooling=pooling))
        with pytest.raises(ModelError, match=rf"pooling_type is {pooling}; 1 \(the mean\) or 2"):
            open_checkpoint(tmp_path / f"{pooling}.gguf")


def test_minilm_as_a_gguf_file(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model, with its vocabulary as llama.cpp's converter writes it."""
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    config = type("Config", (), json.loads((minilm / "config.json").read_text()))
    writer = write_gguf(minilm, "bert", tmp_path / "m.gguf", config, pooling=1)
    theirs = load_tokenizer(minilm)
    special = {theirs.tokenizer.token_to_id(token): token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    pieces = [str(theirs.tokenizer.id_to_token(number)) for number in range(theirs.tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(
        [t if n in special else t[2:] if t.startswith("##") else f"▁{t}" for n, t in enumerate(pieces)]
    )
    writer.add_token_types([3 if number in special else 1 for number in range(len(pieces))])
    finish(writer)
    ours = load_tokenizer(tmp_path / "m.gguf")
    for text in STRINGS:
        assert ours.encode(text) == theirs.encode(text), repr(text)
    assert ours.encode_pair("one", "two words") == theirs.encode_pair("one", "two words")
    ids = [np.array(theirs.encode(text)) for text in ("A sentence.", "Another one, about something else", "ÉCOLE")]
    vectors = [encode(path, CpuBackend(), ids) for path in (tmp_path / "m.gguf", minilm)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_unigram_is_xlm_robertas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    pieces = ["▁", "a", "b", "c", "▁a", "ab", "abc", "▁ab", "ca", "é", "▁the", "the", "t", "h", "e"]
    tokens = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokens += [(piece, -1.5 * number - 1.0) for number, piece in enumerate(pieces)] + [("<mask>", 0.0)]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bert")
    writer.add_tokenizer_model("t5")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([score for _, score in tokens])
    writer.add_token_types([3, 3, 3, 2, *[1] * len(pieces), 3])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    finish(writer)
    ours, theirs = load_tokenizer(tmp_path / "m.gguf"), XLMRobertaTokenizer(vocab=tokens)
    for text in [*STRINGS, "abc  ab the\tcab", "<mask> the", "é the ab"]:
        assert ours.encode(text) == theirs(text)["input_ids"], repr(text)
    assert len(set(ours.encode("the abc cab é"))) > 5


def test_texts_of_encoders_are_closed(smollm2: Path) -> None:
    """Where the file says so, or where the way of splitting is an encoder's."""
    file = open_gguf(smollm2)
    for changes, before, after in (
        ({"pre": "modern-bert", "seperator_token_id": 2}, [1], [2]),
        ({"pre": "roberta-bpe", "seperator_token_id": 2, "add_eos_token": True, "eos_token_id": 0}, [1], [0]),
        ({"pre": "modern-bert", "seperator_token_id": 2, "add_sep_token": False}, [1], []),
    ):
        keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        kept = {key: value for key, value in file.metadata.items() if key != "tokenizer.ggml.add_bos_token"}
        ids = build_tokenizer(replace(file, metadata=kept | keys)).encode("Hello").ids
        assert ids[: len(before)] == before
        assert ids[len(ids) - len(after) :] == after
        assert len(ids) == 1 + len(before) + len(after)
