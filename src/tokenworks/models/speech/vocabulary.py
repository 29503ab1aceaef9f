"""Whisper's special tokens, and which of the others it must not write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenworks.models.files.json_file import read_json
from tokenworks.protocol.errors import ModelError
from tokenworks.protocol.sampling import SpeechRules

TIME_STEP_S = 0.02
"""From one of the tokens that are times to the next; the first is 0."""
_OF_ALL_LANGUAGES = 51865
"""Vocabularies of so many tokens, or more, are those of models that know more than English."""


@dataclass(frozen=True, slots=True)
class SpeechVocabulary:
    """Of one model."""

    start: int
    """<|startoftranscript|>"""
    previous: int
    """<|startofprev|>: what follows was said before."""
    end: int
    silence: int
    """<|nospeech|>: where the next token should be the language."""
    times_from: int
    """The token that is 0 s."""
    transcribe: int
    translate: int
    languages: dict[str, int]
    """By code; empty: it knows English only, and is told neither language nor task."""
    never: tuple[int, ...]
    """Sounds that are no speech, and special tokens that have no place in a text."""
    not_first: tuple[int, ...]

    def prompt(self, language: str, translate: bool) -> list[int]:
        """What a text begins with."""
        if not self.languages:
            return [self.start]
        return [self.start, self.languages[language], self.translate if translate else self.transcribe]

    @property
    def rules(self) -> SpeechRules:
        """Of a text with times."""
        return SpeechRules(never=self.never, not_first=self.not_first, end=self.end, timestamps_from=self.times_from)


def open_speech_vocabulary(folder: Path, tokenizer: Tokenizer, vocabulary: int) -> SpeechVocabulary:
    """Of a checkpoint folder; `vocabulary` is the width of its logits. Raises ModelError naming what is missing."""

    def token(*names: str) -> int:
        found = next((number for name in names if (number := tokenizer.token_to_id(name)) is not None), None)
        if found is None:
            raise ModelError(f"{folder}: its tokenizer has no token {names[0]!r}, which a Whisper model needs.")
        return found

    start, translate, end = token("<|startoftranscript|>"), token("<|translate|>"), token("<|endoftext|>")
    times_from = token("<|notimestamps|>") + 1
    said = [read_json(path) for name in _FILES if (path := folder / name).exists()]
    many = next((s["is_multilingual"] for s in said if isinstance(s.get("is_multilingual"), bool)), None)
    languages: dict[str, int] = {}
    if vocabulary >= _OF_ALL_LANGUAGES if many is None else many:
        for number in range(start + 1, min(translate, token("<|transcribe|>"))):
            languages[(tokenizer.id_to_token(number) or "").strip("<|>")] = number
    special = set(range(start, times_from)) - {end}
    return SpeechVocabulary(
        start=start,
        previous=token("<|startofprev|>"),
        end=end,
        silence=token("<|nospeech|>", "<|nocaptions|>"),
        times_from=times_from,
        transcribe=token("<|transcribe|>"),
        translate=translate,
        languages=languages,
        never=tuple(sorted(special | _listed(said, ("suppress_tokens", "suppress_ids"), vocabulary))),
        not_first=tuple(sorted(_listed(said, ("begin_suppress_tokens", "suppress_ids_begin"), vocabulary) | {end})),
    )


_FILES = ("generation_config.json", "config.json")
"""Where transformers, and where CTranslate2 and older checkpoints say which tokens must not be written."""


def _listed(said: Sequence[dict[str, Any]], keys: tuple[str, str], vocabulary: int) -> set[int]:
    lists = (table[key] for table in said for key in keys if isinstance(table.get(key), list))
    return {number for number in next(lists, []) if isinstance(number, int) and 0 <= number < vocabulary}
