"""The extension module (module.cpp). `Place`: floats from the arena's begin, floats from one row to the next.
`Raw`: a weight's name, format, out_features, in_features, bytes and row_scales. `Facts`: of a packed matrix, its
layout, out_features, in_features, scale, and whether panels end with scales of rows. What is wrong with a weight or a
step is raised as ValueError."""

from enum import Enum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Place: TypeAlias = tuple[int, int]
Raw: TypeAlias = tuple[str, str, int, int, npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]
Facts: TypeAlias = tuple[str, int, int, float, bool]

class Rows(Enum):
    tokens = 0
    selected = 1
    sequences = 2
    merged = 3

class Index(Enum):
    token = 0
    known_token = 1
    position = 2
    axis = 3
    zero = 4

class Activation(Enum):
    silu = 0
    gelu_tanh = 1
    gelu = 2
    gelu_quick = 3
    relu2 = 4
    sigmoid = 5
    none = 6

class CacheType(Enum):
    float32 = 0
    float16 = 1
    int8 = 2

def isa() -> str: ...
def isa_trouble() -> str | None: ...
def checksum(data: npt.NDArray[np.uint8], /) -> int: ...
def packed_bytes(facts: Facts, /) -> int: ...

class KeptExperts:
    def __init__(self, experts: int, slots: int, half_life: float, /) -> None: ...
    def choose(self, needed: list[int], /) -> list[tuple[int, int, int]]:
        """Moves: expert, slot, who had it before or -1."""

    def limit(self, slots: int, /) -> list[int]: ...
    def slot(self, expert: int, /) -> int: ...
    @property
    def kept(self) -> int: ...

class Executor:
    def __init__(self, threads: int) -> None: ...
    def pack(self, weights: list[Raw], /) -> list[tuple[Facts, npt.NDArray[np.uint8]]]: ...
    def checksums(self, arrays: list[npt.NDArray[np.uint8]], /) -> list[int]: ...
    def copy(self, data: npt.NDArray[np.uint8], /) -> npt.NDArray[np.uint8]: ...
    def use(self, facts: Facts, data: npt.NDArray[np.uint8], /) -> int: ...
    def vector(self, weight: Raw, /) -> int: ...
    def allocate(
        self,
        arena_floats: int,
        prepared_rows: int,
        prepared_width: int,
        blocks: int,
        block_tokens: int,
        cache_type: CacheType,
        merged: int,
        layers: list[tuple[int, int, int]],
        state_slots: int,
        states: list[int],
    ) -> None: ...
    def watch(self, rows: Rows, x: Place, width: int, /) -> None: ...
    @property
    def finite(self) -> bool: ...
    def barrier(self) -> None: ...
    def pause(self) -> None: ...
    def input(self, output: Place, width: int, /) -> None: ...
    def inject(self, x: Place, width: int, offset: int, replace: bool, /) -> None: ...
    def merge(self, output: Place, x: Place, width: int, count: int, mean: bool, /) -> None: ...
    def embed(self, rows: Rows, output: Place, matrix: int, width: int, index: Index, scale: float, /) -> None: ...
    def rmsnorm(
        self, rows: Rows, output: Place, x: Place, width: int, group: int, weight: int, wide: bool, epsilon: float, /
    ) -> None: ...
    def layernorm(
        self, rows: Rows, output: Place, x: Place, width: int, weight: int, bias: int, epsilon: float, /
    ) -> None: ...
    def prepare(self, rows: Rows, x: Place, width: int, forms: int, /) -> None: ...
    def linear(
        self, rows: Rows, output: Place, x: Place, residual: Place | None, segments: list[tuple[int, int]]
    ) -> None: ...
    def prepare_heads(
        self,
        rows: Rows,
        output: Place,
        x: Place,
        heads: int,
        kept: int,
        inputs: int,
        outputs: int,
        forms: int,
        /,
    ) -> None: ...
    def linear_heads(self, rows: Rows, output: Place, kept: int, matrices: list[int], /) -> None: ...
    def rope(
        self,
        rows: Rows,
        x: Place,
        width: int,
        head_size: int,
        turned: int,
        inverse_frequencies: int,
        scale: float,
        axes: list[int],
        /,
    ) -> None: ...
    def store(self, k: Place, v: Place, layer: int, /) -> None: ...
    def attend(
        self,
        rows: Rows,
        output: Place,
        q: Place,
        k: Place,
        v: Place,
        layer: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        scale: float,
        window: int,
        softcap: float,
        windows: bool,
        sinks: int,
        portion: int,
        portions: int,
        latent: int,
        begin: int,
        end: int,
        chunked: bool,
        /,
    ) -> None: ...
    def short_convolution(
        self, output: Place, x: Place, state: int, width: int, kernel: int, weight: int, bias: int, activated: bool, /
    ) -> None: ...
    def selective_scan(
        self,
        output: Place,
        x: Place,
        b: Place,
        c: Place,
        steps: Place,
        state: int,
        decay: int,
        step_bias: int,
        skip: int,
        heads: int,
        head_size: int,
        groups: int,
        state_size: int,
        least_step: float,
        most_step: float,
        /,
    ) -> None: ...
    def delta_rule(
        self,
        output: Place,
        q: Place,
        k: Place,
        v: Place,
        steps: Place,
        rates: Place,
        state: int,
        decay: int,
        step_bias: int,
        heads: int,
        key_heads: int,
        key_size: int,
        value_size: int,
        alternating: bool,
        /,
    ) -> None: ...
    def gate(
        self,
        rows: Rows,
        output: Place,
        gate: Place,
        up: Place,
        width: int,
        activation: Activation,
        limit: float,
        offset: float,
        /,
    ) -> None: ...
    def activate(self, rows: Rows, output: Place, x: Place, width: int, activation: Activation, /) -> None: ...
    def add(self, rows: Rows, output: Place, a: Place, b: Place, width: int, /) -> None: ...
    def scale(self, rows: Rows, output: Place, x: Place, width: int, factor: float, /) -> None: ...
    def scale_rows(self, rows: Rows, output: Place, x: Place, by: Place, width: int, /) -> None: ...
    def multiply(self, rows: Rows, output: Place, x: Place, width: int, weight: int, wide: bool, /) -> None: ...
    def mix_streams(
        self,
        rows: Rows,
        output: Place,
        x: Place,
        coefficients: Place,
        width: int,
        inputs: int,
        outputs: int,
        offset: float,
        /,
    ) -> None: ...
    def match_magnitude(
        self, rows: Rows, output: Place, x: Place, like: Place, width: int, least: float, /
    ) -> None: ...
    def sparsify(self, rows: Rows, output: Place, x: Place, width: int, deviations: float, /) -> None: ...
    def route(
        self,
        rows: Rows,
        output: Place,
        x: Place,
        experts: int,
        top_k: int,
        sigmoid: bool,
        normalise: bool,
        scale: float,
        bias: int,
        expert_scales: int,
        groups: int,
        kept_groups: int,
        group_best: int,
    ) -> None: ...
    def experts(
        self,
        rows: Rows,
        output: Place,
        x: Place,
        routes: Place,
        routed: int,
        top_k: int,
        width: int,
        inner: int,
        activation: Activation,
        limit: float,
        offset: float,
        experts: list[tuple[int, int, int, int, int, int, int]],
    ) -> None:
        """Of each expert: the router's number, matrices gate (or -1), up, down, and the vectors of their biases."""

    def expert_uses(self) -> list[list[int]]: ...
    def in_file(self, file: npt.NDArray[np.uint8], descriptor: int, /) -> None: ...
    def keep_experts(self, most_bytes: int, /) -> None: ...
    def expert_reads(self) -> tuple[int, int]: ...
    @property
    def expert_bytes(self) -> int: ...
    @property
    def kept_expert_bytes(self) -> int: ...
    def softcap(self, rows: Rows, output: Place, x: Place, width: int, cap: float, /) -> None: ...
    def select_rows(self, output: Place, x: Place, width: int, /) -> None: ...
    def pool(self, output: Place, x: Place, width: int, mean: bool, normalise: bool, /) -> None: ...
    def run(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        row_starts: npt.NDArray[np.int32],
        block_tables: npt.NDArray[np.int32],
        logit_rows: npt.NDArray[np.int32],
        features: npt.NDArray[np.float32] | None,
        feature_rows: npt.NDArray[np.int32] | None,
        axes: npt.NDArray[np.int32] | None,
        ends: npt.NDArray[np.int32] | None,
        inputs: npt.NDArray[np.float32] | None,
        window_starts: npt.NDArray[np.int32] | None,
        state_begin: npt.NDArray[np.int32] | None,
        state_rows: npt.NDArray[np.int32] | None,
        state_slots: npt.NDArray[np.int32] | None,
        adapters: npt.NDArray[np.int32] | None,
        first_part: int,
        end_part: int,
        threads: int,
        /,
    ) -> None: ...
    def load_adapter(self, slot: int, adaptations: list[tuple[int, Raw, Raw, float]], /) -> None:
        """Of each weight: its matrix, down [rank, in_features], up [out_features, rank], scale."""

    def drop_adapter(self, slot: int, /) -> None: ...
    @property
    def adapter_bytes(self) -> int: ...
    def values(self, place: Place, rows: int, width: int, /) -> npt.NDArray[np.float32]: ...
    def sample(
        self,
        logits: npt.NDArray[np.float32],
        temperature: npt.NDArray[np.float32],
        top_k: npt.NDArray[np.int32],
        top_p: npt.NDArray[np.float32],
        min_p: npt.NDArray[np.float32],
        uniform: npt.NDArray[np.float32],
        /,
    ) -> npt.NDArray[np.int32]: ...
    def logprobs(
        self, logits: npt.NDArray[np.float32], chosen: npt.NDArray[np.int32], top: int, /
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]: ...
    def input_form(self, matrix: int, /) -> int:
        """What form of its input a weight multiplies: a bit of `forms`."""
    @property
    def weight_bytes(self) -> int: ...
    @property
    def cache_bytes(self) -> int: ...
