"""Families of architectures, one module each. A module is imported when it is first named as an attribute of this
package (PEP 562): all of them would take a tenth of a second of every start, and a model needs one."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # mypy checks each row of models/architectures.py by this list
    from tokenworks.models.families import bamba as bamba
    from tokenworks.models.families import bert as bert
    from tokenworks.models.families import bert_gguf as bert_gguf
    from tokenworks.models.families import deepseek as deepseek
    from tokenworks.models.families import falcon_h1 as falcon_h1
    from tokenworks.models.families import gemma as gemma
    from tokenworks.models.families import gemma3n as gemma3n
    from tokenworks.models.families import gemma4 as gemma4
    from tokenworks.models.families import gemma_vision as gemma_vision
    from tokenworks.models.families import glm as glm
    from tokenworks.models.families import glm_moe as glm_moe
    from tokenworks.models.families import gpt_oss as gpt_oss
    from tokenworks.models.families import granite as granite
    from tokenworks.models.families import idefics3 as idefics3
    from tokenworks.models.families import layer_normed as layer_normed
    from tokenworks.models.families import lfm2 as lfm2
    from tokenworks.models.families import like_llama as like_llama
    from tokenworks.models.families import like_mixtral as like_mixtral
    from tokenworks.models.families import llama as llama
    from tokenworks.models.families import llama4 as llama4
    from tokenworks.models.families import mamba as mamba
    from tokenworks.models.families import mixtral as mixtral
    from tokenworks.models.families import olmo as olmo
    from tokenworks.models.families import qwen as qwen
    from tokenworks.models.families import qwen_moe as qwen_moe
    from tokenworks.models.families import qwen_next as qwen_next
    from tokenworks.models.families import qwen_vision as qwen_vision
    from tokenworks.models.families import whisper as whisper
else:

    def __getattr__(name: str) -> ModuleType:
        """Raises AttributeError where there is no such module."""
        whole = f"{__name__}.{name}"
        try:
            return import_module(whole)
        except ModuleNotFoundError as error:
            if error.name != whole:
                raise
            raise AttributeError(f"{__name__} has no module {name!r}") from error
