"""Tokenizers against slow or foreign ones: a textbook BPE, SentencePiece itself, transformers."""

import json
import random
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
import regex
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GemmaTokenizer

from tokenworks.models.files.gguf import GgufFile, open_gguf
from tokenworks.models.text import gguf_tokenizer
from tokenworks.models.text.gguf_tokenizer import build_tokenizer
from tokenworks.models.text.tokenizer import ModelTokenizer, load_tokenizer
from tokenworks.protocol.errors import ModelError

TEXTS = [
    "", " ", "Hello, world!", "  two  spaces   three ", "\n\n\nnew\n lines\r\n\t\ttabs\t",
    "I'll we've IT'S DON'T it’s",
    "héllo cafe\u0301 ﬁ 🤖👩‍👩‍👧 日本語テキスト العربية हिन्दी",
    "aBcDEf camelCase HTTPServer's iPhone漢字かな가나 ÀÉcole ǅ", "x.y/z\n//\n\n##Title a/b", "12345 6 789012",
    "def f(x):\n    return x**2  # 12345.678e-9\n", "a" * 300,
    "1234567890 ٣٤٥ ½ ²", "<table><td>x</td>\n\n", "\u00a0\u200b\x00\x01\x7f", "Z͑ͫ̓ͪ̂ͫ̽͏", "x▁ ▁y",
    "trailing   \n   ", "<|im_start|>user\nhi<|im_end|>\n", "<start_of_turn>model\n<end_of_turn><bos>", "<|im_start",
]  # fmt: skip
_PARTS = [
    "a",
    "the",
    " ",
    "  ",
    "\n",
    "é",
    "日",
    "🤖",
    "ing",
    "<b>",
    "x1",
    "\t",
    "ß",
    "'s",
    "007",
    "<|im_end|>",
    "▁",
    "!?",
]
_random = random.Random(11)
TEXTS += ["".join(_random.choice(_PARTS) for _ in range(_random.randrange(30))) for _ in range(200)]

# The published splitting rules, as each model's tokenizer.json has them.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = [GPT4.replace("DIGITS", r"\p{N}{1,3}")]
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = GPT4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
KIMI = GPT4O.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace(r"[\r\n/]*", r"[\r\n]*")
SPLITS = {
    "gpt-2": [GPT2],
    "default": [GPT2],
    "roberta-bpe": [GPT2],
    "olmo": [GPT2],
    "modern-bert": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "refact": [r"\p{N}", GPT2],
    "llama-bpe": LLAMA3,
    "pixtral": LLAMA3,
    "smaug-bpe": LLAMA3,
    "dbrx": LLAMA3,
    "glm4": LLAMA3,
    "chatglm-bpe": LLAMA3,
    "qwen2": [GPT4.replace("DIGITS", r"\p{N}")],
    "qwen35": [
        GPT4.replace("DIGITS", r"\p{N}").replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}")
    ],
    "gpt-4o": [GPT4O],
    "tekken": [TEKKEN],
    "kimi-k2": [r"\p{Han}+|" + KIMI],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    # Letters that have cases; the file has them as ranges, of an older Unicode.
    "deepseek-llm": [
        r"[\r\n]",
        r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+\Z",
        "[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
}
NFC = ("olmo", "modern-bert", "qwen2", "qwen35")
WHOLE_WORDS = ("llama-bpe", "pixtral", "glm4", "tekken")


class TextbookBpe:
    """Byte-level BPE as the GPT-2 paper has it: split, spell in byte letters, merge best pairs first."""

    def __init__(self, file: GgufFile, pre: str) -> None:
        tokens, types = file.array("tokenizer.ggml.tokens"), file.array("tokenizer.ggml.token_type")
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(file.array("tokenizer.ggml.merges"))}
        self.special = "|".join(regex.escape(t) for t, kind in zip(tokens, types, strict=True) if kind == 3)
        self.pre, self.splits = pre, SPLITS[pre]
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in plain]
        self.letters = {b: chr(b) for b in plain} | {b: chr(256 + n) for n, b in enumerate(others)}

    def encode(self, text: str) -> list[int]:
        ids = []
        for piece in regex.split(f"({self.special})", text):
            if piece in self.ids and regex.fullmatch(self.special, piece):
                ids.append(self.ids[piece])
            else:
                ids += [self.ids[symbol] for word in self.words(piece) for symbol in self.merge(word)]
        return ids

    def words(self, text: str) -> list[str]:
        import unicodedata

        words = [unicodedata.normalize("NFC", text) if self.pre in NFC else text]
        for pattern in self.splits:
            compiled = regex.compile(f"({pattern})", regex.V1)
            words = [part for word in words for part in compiled.split(word) if part]
        return words

    def merge(self, word: str) -> list[str]:
        symbols = [self.letters[byte] for byte in word.encode()]
        if self.pre in WHOLE_WORDS and "".join(symbols) in self.ids:
            return ["".join(symbols)]
        while pairs := [(self.ranks[p], n) for n, p in enumerate(pairwise(symbols)) if p in self.ranks]:
            _, place = min(pairs)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        return symbols


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_tokens_are_those_of_the_textbook(pre: str, smollm2: Path) -> None:
    file = open_gguf(smollm2)
    assert file.metadata["tokenizer.ggml.pre"] == "smollm"
    file = replace(file, metadata={**file.metadata, "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False})
    ours, textbook = build_tokenizer(file), TextbookBpe(file, pre)
    for text in TEXTS:
        assert ours.encode(text).ids == textbook.encode(text), repr(text)


def test_smollm2(smollm2: Path) -> None:
    t = load_tokenizer(smollm2)
    assert t.encode("<|im_start|>user\nhi<|im_end|>") == [1, 4093, 198, 6004, 2]
    assert (t.bos_token, t.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert t.eos_token_ids == {0, 2}  # <|endoftext|> ends a text too
    assert t.chat_template is not None
    assert "<|im_start|>" in t.chat_template
    for text in TEXTS:
        assert t.decode(t.encode(text), skip_special=False) == text
    assert t.decode([1, 4093, 2], skip_special=True) == "user"


def _sentencepiece_of(file: GgufFile, *, space_prefix: bool) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece's own model, from the pieces, scores and types of a GGUF file (sentencepiece_model.proto)."""

    def number(field: int, value: int) -> bytes:
        return varint(field << 3) + varint(value)

    def varint(value: int) -> bytes:
        low, rest = value & 127, value >> 7
        return bytes([low | 128]) + varint(rest) if rest else bytes([low])

    def block(field: int, content: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(content)) + content

    unknown = file.metadata["tokenizer.ggml.unknown_token_id"]
    columns = [file.array(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")]
    model = bytearray()
    for at, (token, score, kind) in enumerate(zip(*columns, strict=True)):
        text = token.replace(" ", "▁") if kind == 4 else token
        piece = block(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
        model += block(1, piece + number(3, 2 if at == unknown else kind))
    trainer = number(3, 2) + number(35, 1) + number(40, unknown)  # BPE with byte fallback
    rules = block(1, b"identity") + number(3, int(space_prefix)) + number(4, 0) + number(5, 1)
    return sentencepiece.SentencePieceProcessor(model_proto=bytes(model + block(2, trainer) + block(3, rules)))


def test_gemmas_tokens_are_sentencepieces(gemma3: Path) -> None:
    ours, theirs = load_tokenizer(gemma3), _sentencepiece_of(open_gguf(gemma3), space_prefix=False)
    for text in TEXTS:
        if "<start_of_turn>" not in text and "<bos>" not in text:  # which SentencePiece does not look for in a text
            assert ours.encode(text, special=False) == theirs.encode(text), repr(text)
    assert ours.encode("<start_of_turn>user\nHi<end_of_turn>\n") == [2, 105, 2364, 107, 10979, 106, 107]
    assert ours.encode("Hi", special=False) == [10979]
    assert ours.eos_token_ids == {1, 106}
    assert (ours.bos_token, ours.eos_token, ours.chat_template) == ("<bos>", "<eos>", None)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ours.decode(ids, skip_special=False) == "<bos>" + text.replace("▁", " ")
        assert max(ids) < ours.tokenizer.get_vocab_size() == 262144


def test_a_built_tokenizer_is_kept_and_a_damaged_copy_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    path = tmp_path / "m.gguf"
    _write_sentencepiece(path)
    first = load_tokenizer(path)
    (kept,) = (tmp_path / "home/tokenizers").iterdir()

    def not_again(file: GgufFile) -> Tokenizer:
        raise AssertionError("built twice")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_tokenizer, "build_tokenizer", not_again)
        again = load_tokenizer(path)
        assert again.encode("abc ab") == first.encode("abc ab")
        assert replace(again, tokenizer=first.tokenizer) == first
    kept.write_text("{")
    assert load_tokenizer(path).encode("abc ab") == first.encode("abc ab")
    with monkeypatch.context() as patch:
        patch.setattr(gguf_tokenizer, "build_tokenizer", not_again)
        assert load_tokenizer(path).encode("abc ab") == first.encode("abc ab")


def test_sentencepiece_with_a_space_before_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    path = tmp_path / "m.gguf"
    _write_sentencepiece(path)
    ours, theirs = load_tokenizer(path), _sentencepiece_of(open_gguf(path), space_prefix=True)
    for text in ["abc ab", "a  b\nc", "cab abcab é", "bbbbb"]:
        assert ours.encode(text) == [1, *theirs.encode(text)]
        assert ours.decode(ours.encode(text), skip_special=True) == text


def test_gemma_4s_merges_run_over_the_whole_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    pieces = ["▁", "a", "b", "\n", "ab", "▁ab", "ab▁", "\n\n", "▁▁"]
    merges = [("a", "b"), ("▁", "ab"), ("ab", "▁"), ("\n", "\n"), ("▁", "▁")]
    ends = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>"]
    tokens = [*ends, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma4")
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 2, 3] + [6] * 256 + [1] * len(pieces))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = load_tokenizer(tmp_path / "m.gguf")
    theirs = GemmaTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    for text in ["ab ab", "a  b\n\n\nab é", " ab", "abab<turn|>\nab "]:
        ids = ours.encode(text)
        if "<turn|>" not in text:  # which theirs was not told of
            assert ids == [2, *theirs(text, add_special_tokens=False)["input_ids"]]
        assert ours.decode(ids, skip_special=False) == "<bos>" + text
    assert ours.encode("ab<turn|>", special=False) == [tokens.index("ab"), 4]
    assert ours.eos_token_ids == {1, 4}


def _write_sentencepiece(path: Path) -> None:
    pieces = ["▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "▁ab", "▁abc", "bb", "bbb"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-1000.0] * 4 + [-float(n) for n in (3, 1, 0, 2, 4, 5, 7, 6)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_minilm_tokens_are_those_of_transformers(minilm: Path) -> None:
    ours, theirs = load_tokenizer(minilm), AutoTokenizer.from_pretrained(minilm)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], repr(text)
    long = "word " * 600  # the file asks for truncation and padding, which are not the tokenizer's business here
    assert len(ours.encode(long)) == 602


@pytest.fixture
def folder(tmp_path: Path, smollm2: Path) -> Path:
    """A model folder: SmolLM2's vocabulary in tokenizer.json, without the special tokens, which other files declare."""
    tokenizer = json.loads(build_tokenizer(open_gguf(smollm2)).to_str())
    tokenizer["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"content": "<|im_start|>", "__type": "AddedToken"},
        "eos_token": "<|im_end|>",
        "additional_special_tokens": ["<repo_name>"],
        "added_tokens_decoder": {
            "0": {"content": "<|endoftext|>", "special": True},
            "49152": {"content": "<think>", "special": False},
        },
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    return tmp_path


def test_a_folder_declares_tokens_in_several_files(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 17]}')
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, "<think>a</think><repo_name>x<|endoftext|>"]
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"], repr(text)
    assert ours.encode("<think>") == [49152]
    assert (ours.bos_token, ours.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert ours.eos_token_ids == {0, 2, 17}
    assert ours.chat_template == "D"
    (folder / "chat_template.json").write_text('{"chat_template": "P"}')  # of a processor, in older folders
    assert load_tokenizer(folder).chat_template == "D"
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).chat_template == "P"
    (folder / "chat_template.jinja").write_text("J")
    assert load_tokenizer(folder).chat_template == "J"


def test_broken_files_are_named(folder: Path, smollm2: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a usable tokenizer"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(folder)
    with pytest.raises(ModelError, match="no such file"):
        load_tokenizer(folder / "nothing")
    file = open_gguf(smollm2)
    for key, value, message in [
        ("pre", "klingon", "'klingon'; supported are gpt-2"),
        ("model", "rwkv", "'rwkv'; gpt2, llama, gemma4, bert and t5 are supported"),
        ("bos_token_id", 1 << 20, "is not one of its 49152 tokens"),
    ]:
        settings = {**file.metadata, "tokenizer.ggml.add_bos_token": True, f"tokenizer.ggml.{key}": value}
        with pytest.raises(ModelError, match=message):
            build_tokenizer(replace(file, metadata=settings))


def test_encoding_adds_bos_only_where_asked(smollm2: Path) -> None:
    file = open_gguf(smollm2)
    with_bos = replace(file, metadata={**file.metadata, "tokenizer.ggml.add_bos_token": True})
    t = ModelTokenizer(build_tokenizer(with_bos), frozenset({2}), "", "", None)
    plain = load_tokenizer(smollm2).encode("Hello")
    assert t.encode("Hello") == [1, *plain]
    assert t.encode("Hello", special=False) == plain
