"""Which tokens end a text: all that a worker has to know of a tokenizer, without building one where that can be."""

from pathlib import Path

# Tokens that end a turn or a text whatever a checkpoint's files forget to say; they count only where they are special.
ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "</s>",
    "<turn|>",
)

_CONTROL = 3


def eos_token_ids(path: Path) -> frozenset[int]:
    """The same as load_tokenizer(path).eos_token_ids; of a GGUF file it reads the token list alone, which takes a
    tenth of the time. Raises ModelError."""
    if not path.is_file():
        from tokenworks.models.text.tokenizer import (
            load_tokenizer,  # here, so that its library is loaded only if needed
        )

        return load_tokenizer(path).eos_token_ids
    from tokenworks.models.files.gguf import open_gguf  # the gateway reads ENDS without numpy

    file = open_gguf(path)
    types, tokens = file.array("tokenizer.ggml.token_type"), file.array("tokenizer.ggml.tokens")
    named = {number for number, kind in enumerate(types) if kind == _CONTROL and tokens[number] in ENDS}
    said = (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return frozenset(named | {number for number in said if isinstance(number, int)})
