"""Whether two models mean the same by a token id."""

from pathlib import Path

from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.errors import ModelError


def check_same_vocabulary(path: Path, draft_path: Path) -> None:
    """Every token id that both tokenizers have is the same text in both: one may have more at its end, as models of one
    family are padded differently. Raises ModelError naming both models and the first id that differs."""
    served, draft = (
        {number: token for token, number in load_tokenizer(each).tokenizer.get_vocab(with_added_tokens=True).items()}
        for each in (path, draft_path)
    )
    for number in sorted(served.keys() & draft.keys()):
        if served[number] != draft[number]:
            raise ModelError(
                f"{draft_path} cannot draft for {path}: they have different vocabularies "
                f"(token {number} is {draft[number]!r} in the first, {served[number]!r} in the second). "
                "A draft model has to be of the same family as the model it drafts for."
            )
