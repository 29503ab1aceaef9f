"""Builds a tokenizer from a GGUF file's metadata: byte-level BPE, or BPE of text with SentencePiece's spaces, by scores
or (Gemma 4) by merges, BERT's WordPiece, XLM-RoBERTa's Unigram.

The metadata names a way of splitting (tokenizer.ggml.pre: models/text/splitting.py) and lists tokens with types, and
merges or scores.
"""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.text.splitting import SPLITTINGS
from tokenworks.protocol.errors import ModelError

_UNKNOWN, _NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 2, 1, 3, 4, 5
_SPACE = "▁"


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Raises ModelError when the file has no tokenizer, or one of a kind that is not supported."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level(file)
    if kind == "llama":
        return _sentencepiece(file)
    if kind == "gemma4":
        return _spaced(file)
    if kind == "bert":
        return _wordpiece(file)
    if kind == "t5":
        return _unigram(file)
    raise ModelError(f"{file.path}: tokenizer.ggml.model is {kind!r}; gpt2, llama, gemma4, bert and t5 are supported.")


def _byte_level(file: GgufFile) -> Tokenizer:
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    rule = SPLITTINGS.get(str(name))
    if rule is None:
        raise ModelError(f"{file.path}: tokenizer.ggml.pre is {name!r}; supported are {', '.join(SPLITTINGS)}.")
    tokens = file.array("tokenizer.ggml.tokens")
    # A merge is "left right"; neither side has a space of its own, spaces are written Ġ.
    merges = [_pair(file, merge) for merge in file.array("tokenizer.ggml.merges")]
    tokenizer = _tokenizer(file, tokens, merges, ignore_merges=rule.whole_words)
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _declare(file, tokenizer, tokens, {"bos": rule.adds_bos, "sep": rule.adds_sep})
    return tokenizer


def _sentencepiece(file: GgufFile) -> Tokenizer:
    """SentencePiece's BPE: of all neighbours, join those whose piece scores best; bytes where no piece fits."""
    tokens, scores, types = (file.array(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type"))
    if not len(tokens) == len(scores) == len(types):
        raise ModelError(f"{file.path}: tokenizer.ggml.tokens, scores and token_type differ in length.")
    pieces = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind in (_NORMAL, _UNUSED) and token
    }
    ids = {token: number for number, token in enumerate(tokens)}
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise ModelError(f"{file.path}: tokenizer.ggml.unknown_token_id {unknown!r} is not one of its tokens.")
    tokenizer = _with_spaces(file, tokens, _merges(pieces, ids), tokens[unknown])
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True) is True
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "first" if prefix else "never", split=False)
    if prefix:
        tokenizer.decoder = decoders.Sequence([*_spaces_back(), decoders.Strip(" ", 1, 0)])
    _declare(file, tokenizer, tokens, {"bos": True})
    return tokenizer


def _spaced(file: GgufFile) -> Tokenizer:
    """Gemma 4's: the text is not split before its merges."""
    tokens = file.array("tokenizer.ggml.tokens")
    merges = [_pair(file, merge) for merge in file.array("tokenizer.ggml.merges")]
    tokenizer = _with_spaces(file, tokens, merges, "<unk>")
    _declare(file, tokenizer, tokens, {"bos": True})
    return tokenizer


def _with_spaces(file: GgufFile, tokens: list[str], merges: list[tuple[str, str]], unknown: str) -> Tokenizer:
    """Of a vocabulary that writes spaces as SentencePiece does, with bytes where no piece fits."""
    tokenizer = _tokenizer(file, tokens, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True)
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(_spaces_back())
    return tokenizer


def _spaces_back() -> list[Any]:
    return [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]


def _wordpiece(file: GgufFile) -> Tokenizer:
    """BERT's. A file marks tokens that begin a word, where its vocabulary marked those that go on with one (##)."""
    tokens, types = (file.array(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if len(tokens) != len(types):
        raise ModelError(f"{file.path}: tokenizer.ggml.tokens and token_type differ in length.")
    pieces = [
        token if kind == _CONTROL else token[1:] if token.startswith(_SPACE) else f"##{token}"
        for token, kind in zip(tokens, types, strict=True)
    ]
    around = {}
    for role, keys, usual in (
        ("cls", ("cls_token_id", "bos_token_id"), "[CLS]"),
        ("sep", ("seperator_token_id", "eos_token_id"), "[SEP]"),
        ("unknown", ("unknown_token_id",), "[UNK]"),
    ):
        found = (file.metadata.get(f"tokenizer.ggml.{key}") for key in keys)
        number = next((each for each in found if isinstance(each, int)), None)
        if number is None and usual in pieces:
            number = pieces.index(usual)
        if number is None or not 0 <= number < len(pieces):
            raise ModelError(f"{file.path}: tokenizer.ggml.{keys[0]} is {number!r}, which is not one of its tokens.")
        around[role] = number
    cls, sep = pieces[around["cls"]], pieces[around["sep"]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=pieces[around["unknown"]]))
    # Where the file does not say, a vocabulary without capitals is one of small letters.
    capitals = any(piece.isascii() and piece.isalpha() and not piece.islower() for piece in pieces)
    lowercase = file.metadata.get("tokenizer.ggml.normalizer.lowercase", not capitals) is True
    accents = file.metadata.get("tokenizer.ggml.normalizer.strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=accents if isinstance(accents, bool) else None
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [piece for piece, kind in zip(pieces, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(cls, around["cls"]), (sep, around["sep"])],
    )
    return tokenizer


def _unigram(file: GgufFile) -> Tokenizer:
    """SentencePiece's Unigram as XLM-RoBERTa has it: spaces are one each, and one begins a text."""
    tokens, scores, types = (file.array(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type"))
    if not len(tokens) == len(scores) == len(types):
        raise ModelError(f"{file.path}: tokenizer.ggml.tokens, scores and token_type differ in length.")
    for key in ("add_space_prefix", "remove_extra_whitespaces"):
        if file.metadata.get(f"tokenizer.ggml.{key}") is not True:
            raise ModelError(f"{file.path}: a t5 tokenizer is supported only with tokenizer.ggml.{key}.")
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", types.index(_UNKNOWN) if _UNKNOWN in types else None)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise ModelError(f"{file.path}: tokenizer.ggml.unknown_token_id {unknown!r} is not one of its tokens.")
    tokenizer = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unknown, byte_fallback=False))
    if "tokenizer.ggml.precompiled_charsmap" in file.metadata:
        table = bytes(each & 255 for each in file.array("tokenizer.ggml.precompiled_charsmap"))
        tokenizer.normalizer = normalizers.Precompiled(table)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(_SPACE, "always")]
    )
    tokenizer.decoder = decoders.Metaspace(_SPACE, "always")
    _declare(file, tokenizer, tokens, {"bos": True, "eos": True})
    return tokenizer


def _merges(pieces: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first; ways to one piece by the ids of its parts."""
    ways = []
    for piece, score in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                ways.append((-score, ids[piece], ids[left], ids[right], left, right))
    ways.sort()
    return [way[4:] for way in ways]


def _pair(file: GgufFile, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise ModelError(f"{file.path}: tokenizer.ggml.merges has {merge!r}, which is not a pair.")
    return left, right


def _tokenizer(file: GgufFile, tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges, **options))
    except Exception as error:  # the library raises bare Exception, say for a merge of unknown tokens
        raise ModelError(f"{file.path}: its tokenizer cannot be built ({error}).") from error


_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "sep": "seperator_token_id"}


def _declare(file: GgufFile, tokenizer: Tokenizer, tokens: list[str], around: dict[str, bool]) -> None:
    """Declares the tokens that are recognised whole in a text, and those that surround every text: `around` says
    which do where the file says nothing."""
    types, added = file.array("tokenizer.ggml.token_type"), list[AddedToken]()
    for token, kind in zip(tokens, types, strict=False):
        if token and kind in (_CONTROL, _USER_DEFINED):
            # A user's own token is found in the normalised text, where spaces may be written otherwise.
            added.append(AddedToken(token, special=kind == _CONTROL, normalized=kind == _USER_DEFINED))
    tokenizer.add_tokens(added)
    adds = {
        role: file.metadata.get(f"tokenizer.ggml.add_{role}_token", around.get(role, False)) is True for role in _ROLES
    }
    adds["sep"] &= not adds["eos"]  # either ends a text
    numbers = {role: file.metadata.get(f"tokenizer.ggml.{key}") for role, key in _ROLES.items()}
    used = {role: number for role, number in numbers.items() if adds[role] and isinstance(number, int)}
    for role, number in used.items():
        if not 0 <= number < len(tokens):
            raise ModelError(f"{file.path}: {_ROLES[role]} {number} is not one of its {len(tokens)} tokens.")
    if used:
        names = {role: tokens[number] for role, number in used.items()}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[
                *([names["bos"]] if "bos" in names else []),
                "$A",
                *(names[r] for r in ("eos", "sep") if r in names),
            ],
            special_tokens=[(names[role], used[role]) for role in used],
        )
