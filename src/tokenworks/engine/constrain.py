"""Grammars to token masks, by llguidance.

Loading the library, the tokenizer and a grammar takes from a millisecond to a second, so it happens on a thread of its
own, on first use, while other requests go on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from tokenworks.engine.grammar import open_grammar, reason
from tokenworks.kernels.backend import Int32
from tokenworks.protocol.errors import EngineError, InvalidRequest
from tokenworks.protocol.sampling import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

GRAMMAR_CHARACTERS = 256 * 1024
"""The longest grammar taken."""
KEPT = 32
"""So many compiled grammars are kept for the next request that brings the same."""


class Matcher:
    """Where one sequence stands in its grammar."""

    def __init__(self, matcher: LLMatcher, mask_tokens: int, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros((mask_tokens + 31) // 32, np.int32)
        self._words = (vocabulary + 31) // 32

    def allowed(self) -> Int32:
        """A bit for each token that can come next, as RowChange has them; valid until the next call.

        Raises EngineError when the grammar is too much for the library's limits: it would offer only the end then.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        return self._mask[: self._words]

    def take(self, token: int) -> bool:
        """The next output token; true when nothing more can follow. Raises EngineError if it does not fit."""
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot go on: {reason(self._matcher)}")


class GrammarCompiler:
    """Compiles the grammars of one model, one at a time."""

    def __init__(self, tokenizer_json: Callable[[], str], eos_token_ids: frozenset[int], vocabulary: int) -> None:
        """`tokenizer_json` gives the text of a Hugging Face tokenizer.json; `vocabulary` is the logits' width."""
        self._tokenizer_json = tokenizer_json
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocabulary = vocabulary
        self._thread: ThreadPoolExecutor | None = None
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def compile(self, grammar: Grammar) -> Future[Matcher]:
        """Starts compiling. The future raises InvalidRequest when the grammar cannot be used."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "grammar")
        return self._thread.submit(self._compile, grammar)

    def _compile(self, grammar: Grammar) -> Matcher:
        from llguidance import LLTokenizer  # on first use: start-up time is a feature

        if len(grammar.text) > GRAMMAR_CHARACTERS:
            raise InvalidRequest(f"the grammar has {len(grammar.text)} characters; at most {GRAMMAR_CHARACTERS}")
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(self._tokenizer_json(), eos_token=self._eos_token_ids)
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = open_grammar(grammar, self._tokenizer)
            self._compiled[grammar] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Matcher(matcher.deep_copy(), self._tokenizer.vocab_size, self._vocabulary)
