"""Makes Triton's interpreter do once what it does at each call and for each number. For tests only.

Triton 3.6 puts its own functions in the place of triton.language's at every call of a kernel and of every function
that a kernel calls, and builds the type of every intermediate result anew, its shape's tuples included: together
more than half of its time at the sizes of tests. Here the functions are put in place once, and equal types are made
once. What is computed is the same.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import triton.language as tl
from triton.runtime import interpreter

_put_in_place = interpreter._patch_lang
_make_block_type = tl.core.block_type.__init__
_find_np_dtype = interpreter._get_np_dtype
_unwrap_any, _are_equal = tl.core._unwrap_if_constexpr, tl.core.dtype.__eq__
_PLAIN = frozenset({int, bool, float, str, type(None), tl.core.tensor, tl.core.dtype, tl.core.block_type})

_block_types: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
"""What is in block types, by their elements' name and shape; types have no hash of their own."""

_np_dtypes: dict[str, Any] = {}


class _Stays:
    """The scope of what is put in place and not taken back."""

    def restore(self) -> None:
        pass


def _init_block_type(self: Any, element_ty: tl.dtype, shape: Any) -> None:
    key = (element_ty.name, tuple([size.value if isinstance(size, tl.constexpr) else size for size in shape]))
    if key not in _block_types:
        _make_block_type(self, element_ty, list(key[1]))
        _block_types[key] = dict(vars(self))
    vars(self).update(_block_types[key])


@cache
def _constants(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A tensor's shape and number of elements as it holds them."""
    return tl.core.tuple([tl.constexpr(size) for size in shape]), tl.constexpr(math.prod(shape))


def _init_tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _constants(tuple(type.shape.values) if type.is_block() else ())


def _np_dtype(kind: tl.dtype) -> Any:
    if kind.name not in _np_dtypes:
        _np_dtypes[kind.name] = _find_np_dtype(kind)
    return _np_dtypes[kind.name]


def _unwrap(what: Any) -> Any:
    """Most by far are no constants of the compiler's, or such a constant itself."""
    kind = type(what)
    if kind in _PLAIN:
        return what
    return what.value if kind is tl.constexpr else _unwrap_any(what)


def _equal(self: tl.dtype, other: Any) -> bool:
    return self is other or _are_equal(self, other)


@contextmanager
def installed() -> Iterator[None]:
    """As long as the block runs, in which nothing but the interpreter may use triton.language."""
    scopes: dict[tuple[int, ...], Any] = {}

    def put_in_place_once(fn: Callable[..., Any]) -> _Stays:
        seen = tuple(id(value) for value in fn.__globals__.values() if value is tl or value is tl.core)
        if seen not in scopes:
            scopes[seen] = _put_in_place(fn)
        return _Stays()

    with (
        patch.object(interpreter, "_patch_lang", put_in_place_once),
        patch.object(interpreter, "_get_np_dtype", _np_dtype),
        patch.object(tl.core, "_unwrap_if_constexpr", _unwrap),
        patch.object(tl.core.dtype, "__eq__", _equal),
        patch.object(tl.core.block_type, "__init__", _init_block_type),
        patch.object(tl.core.tensor, "__init__", _init_tensor),
    ):
        try:
            yield
        finally:
            for scope in reversed(scopes.values()):
                scope.restore()
