"""How byte-level tokenizers split a text into words before they merge, by the name in tokenizer.ggml.pre.

Patterns are those of the tokenizer.json of the models that the names come from. Each one's matches are words of their
own, and so is what lies between them; the next one splits these.
"""

from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _gpt4(digits: str, letters: str = r"\p{L}") -> str:
    """What GPT-4's tokenizer began. `digits`: how many stay together; `letters`: what words are made of."""
    words = rf"[^\r\n\p{{L}}\p{{N}}]?[{letters}]+"
    return rf"{_CONTRACTIONS}|{words}|{digits}| ?[^\s{letters}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(end: str, digits: str, marks: str, but: str = "") -> str:
    """What GPT-4o's tokenizer began: within a word no capital follows a small letter.

    `end`: what belongs to a word behind it; `marks`: to punctuation; `but`: which letters are not meant.
    """
    first, upper, lower = r"[^\r\n\p{L}\p{N}]?", rf"[\p{{Lu}}\p{{Lt}}{_ANY}{but}]", rf"[\p{{Ll}}{_ANY}{but}]"
    words = f"{first}{upper}*{lower}+{end}|{first}{upper}+{lower}*{end}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+{marks}*|{_SPACES}"


_ANY = r"\p{Lm}\p{Lo}\p{M}"
_THREE, _ONE = r"\p{N}{1,3}", r"\p{N}"
_CJK = r"[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r" ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """A kind of byte-level BPE."""

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    """A word that is a token is taken whole, without merges."""
    adds_bos: bool = False
    """When the metadata does not say."""
    adds_sep: bool = False
    """The same."""


_GPT2_KIND = Splitting((GPT2,))
_NEOX_KIND = Splitting((GPT2,), nfc=True)
_DIGITS_KIND = Splitting((_ONE, GPT2))
_LLAMA3_KIND = Splitting((_gpt4(_THREE),), whole_words=True, adds_bos=True)
_GPT4_KIND = Splitting((_gpt4(_THREE),))

SPLITTINGS = {
    "gpt-2": _GPT2_KIND,
    "default": _GPT2_KIND,
    "phi-2": _GPT2_KIND,
    "roberta-bpe": Splitting((GPT2,), adds_bos=True, adds_sep=True),
    "mpt": _NEOX_KIND,
    "olmo": _NEOX_KIND,
    "modern-bert": Splitting((GPT2,), nfc=True, adds_bos=True, adds_sep=True),
    "smollm": _DIGITS_KIND,
    "starcoder": _DIGITS_KIND,
    "refact": _DIGITS_KIND,
    "llama-bpe": _LLAMA3_KIND,
    "llama3": _LLAMA3_KIND,
    "llama-v3": _LLAMA3_KIND,
    "pixtral": _LLAMA3_KIND,
    "smaug-bpe": _GPT4_KIND,
    "dbrx": _GPT4_KIND,
    "chatglm-bpe": _GPT4_KIND,
    "glm4": Splitting((_gpt4(_THREE),), whole_words=True),
    "qwen2": Splitting((_gpt4(_ONE),), nfc=True),
    "qwen35": Splitting((_gpt4(_ONE, r"\p{L}\p{M}"),), nfc=True),
    "gpt-4o": Splitting((_cased(f"{_CONTRACTIONS}?", _THREE, r"[\r\n/]"),)),
    "tekken": Splitting((_cased("", _ONE, r"[\r\n/]"),), whole_words=True, adds_bos=True),
    "kimi-k2": Splitting((r"\p{Han}+|" + _cased(f"{_CONTRACTIONS}?", _THREE, r"[\r\n]", r"&&[^\p{Han}]"),)),
    "deepseek-llm": Splitting(
        (r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, r"\p{N}+")
    ),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _ONE)),
    "deepseek-v3": Splitting((_THREE, "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_V3)),
}
