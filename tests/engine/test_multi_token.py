"""A model's own layer that guesses: the same output whatever it says, its entries in the cache those of their tokens,
its guesses kept where they are right."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from drafting import Eager, Ticks, use
from remembering import POWERS, VOCABULARY, Ahead, next_token
from small_model import ask, limits, no_tokenizer, run
from test_speculate import flat, requests
from worlds import World

from tokenworks.engine.engine import Engine
from tokenworks.engine.multi_token import MultiToken, guess_blocks
from tokenworks.engine.sequence import Sequence
from tokenworks.kernels.backend import Backend, Float32, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import Program
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.kvcache.layout import state_bytes
from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.decoder import decoder_program, decoder_shapes
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.delta import DeltaNet
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.latent import Latent
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.multi_token import multi_token_program, multi_token_shapes
from tokenworks.models.parts.rope import Rope

WIDTH = 64
LATENT = Latent(heads=5, rank=24, turned=16, unturned=9, value_size=11, scale=0.2, rope="global", query_rank=20)
ATTENTION = Attention(heads=4, kv_heads=2, head_size=16, scale=0.25, rope="global", turned=16)
EXPERTS = Mixture(experts=6, width=32, top_k=2, activation="silu", normalise=True)
MLP = Mlp(width=96, activation="silu")
DELTA = DeltaNet(heads=4, key_heads=2, key_size=8, value_size=12, kernel=4, norm_epsilon=1e-5)
LAYERS = {
    "latent attention": Layer(mixer=LATENT, feed_forward=EXPERTS),
    "grouped queries": Layer(mixer=ATTENTION, feed_forward=MLP),
    "behind recurrent layers": Layer(mixer=ATTENTION, feed_forward=EXPERTS),
}


@cache
def model(layer: str, vocabulary: int, *, certain: bool = False) -> tuple[Program, dict[str, Tensor]]:
    """With random weights; or `certain` what follows each token, whatever came before it."""
    first = replace(LAYERS[layer], mixer=DELTA) if layer == "behind recurrent layers" else LAYERS[layer]
    config = DecoderConfig(
        architecture="small", vocabulary=vocabulary, context_tokens=500, width=WIDTH, layers=(first, LAYERS[layer]),
        ropes={"global": Rope(size=16, base=1e4)}, norm_epsilon=1e-5, tied_head=False, multi_token=LAYERS[layer],
    )  # fmt: skip
    rng = np.random.default_rng(3)
    values = {}
    for name, shape in (decoder_shapes(config) | multi_token_shapes(config, LAYERS[layer])).items():
        scale = 1.0 if name == "embed" else 2.5 / shape[-1] ** 0.5
        values[name] = 1 + 0.1 * rng.standard_normal(shape) if len(shape) == 1 else rng.standard_normal(shape) * scale
        if name.endswith(".decay"):
            values[name] = -np.abs(values[name])
        if certain and name.endswith((".o", ".out", ".down")):
            values[name] *= 0
    if certain:
        values["head"] = values["embed"][np.arange(vocabulary) - 1]  # token t is followed by t + 1
        values["layers.2.join"] = np.eye(WIDTH, 2 * WIDTH)
    values["rope.global"] = config.ropes["global"].inverse_frequencies(500)
    weights = {
        name: Tensor(name, "F32", array.shape, np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8))
        for name, array in values.items()
    }
    program = replace(
        decoder_program(config, hands_out=True), sequel=multi_token_program(config, config.multi_token or LAYERS[layer])
    )
    return program, weights


def engine_of(
    layer: str, backend: Backend, sizes: Limits, vocabulary: int, *, speculate: bool = True, certain: bool = False
) -> tuple[Engine, MultiToken]:
    program, weights = model(layer, vocabulary, certain=certain)
    if state_bytes(program.cache_layers):
        sizes = replace(sizes, state_slots=30)
    blocks = sizes.blocks + guess_blocks(sizes.sequences, sizes.block_tokens)
    executable = backend.compile(program, weights, replace(sizes, blocks=blocks))
    guessing = MultiToken(executable, sizes, Ticks(0.0005))
    engine = Engine(
        executable, sizes, eos_token_ids=frozenset({2}), context_tokens=200, vocabulary=vocabulary,
        tokenizer_json=no_tokenizer, speculate=speculate, draft=guessing if speculate else None,
    )  # fmt: skip
    return engine, guessing


@pytest.mark.parametrize(
    ("backend", "layer"),
    [
        *((CpuBackend, layer) for layer in LAYERS),
        # The reference rounds a state where a step ends: it is not the same bits in other steps.
        *((ReferenceBackend, layer) for layer in LAYERS if layer != "behind recurrent layers"),
    ],
)
def test_the_same_tokens_and_log_probabilities(layer: str, backend: type[Backend]) -> None:
    drafted = accepted = preempted = hits = 0
    for seed in range(1 if backend is ReferenceBackend else 8):
        vocabulary = [24, 8][seed % 2]
        asked = requests(seed, vocabulary)
        expected = flat(run(engine_of(layer, backend(), limits(), vocabulary, speculate=False)[0], *asked))
        for sizes in (limits(), limits(blocks=41), limits(sequences=3, step_tokens=9, logit_rows=7)):
            engine, guessing = engine_of(layer, backend(), sizes, vocabulary)
            if seed % 4 < 2:
                use(engine, Eager(guessing, seed))
            assert flat(run(engine, *asked)) == expected, (seed, sizes)
            assert flat(run(engine, *asked[:2])) == {name: expected[name] for name in ("r0", "r1")}, "with prefix hits"
            stats = engine.step(0.0).stats
            drafted += guessing.drafted
            accepted += guessing.accepted
            preempted += stats.preemptions_total
            hits += stats.prefix_hit_tokens_total
            assert stats.draft_tokens_total >= guessing.drafted
            assert stats.draft_tokens_accepted_total >= guessing.accepted
            assert stats.kv_blocks_used == stats.state_slots_used == 0
            assert not guessing._followers
    assert min(hits, drafted - accepted) > 9, "not everything was tried"
    assert backend is ReferenceBackend or min(preempted, accepted) > 0


@pytest.mark.parametrize("layer", ["latent attention", "behind recurrent layers"])
def test_guesses_that_are_right_save_steps(layer: str) -> None:
    """By its clock a pass takes a twentieth of a step: so the real speculator chooses to guess."""
    tokens, steps = 120, {}
    for speculate in (False, True):
        engine, guessing = engine_of(layer, CpuBackend(), limits(), 151, speculate=speculate, certain=True)
        reply = run(engine, ask("a", [5, 9], max_tokens=tokens, ignore_eos=True))["a"]
        assert reply.tokens == [(10 + i) % 151 for i in range(tokens)]
        steps[speculate] = engine.step(0.0).stats.steps_total
        if speculate:
            assert guessing.drafted == guessing.accepted > tokens / 2
    assert steps[True] < steps[False] / 3


class GuessingExecutable(Ahead):
    """What its head reads is the hash of all tokens so far; its sequel remembers of which tokens each entry is."""

    def __init__(self, sizes: Limits, mistakes: float, *, runs_ahead: bool) -> None:
        super().__init__(sizes)
        blocks = sizes.blocks + guess_blocks(sizes.sequences, sizes.block_tokens)
        self.pairs = np.zeros((blocks, sizes.block_tokens), np.uint64)
        self.mistakes, self.draw = mistakes, random.Random(5)
        self.runs_ahead = runs_ahead
        self.hidden: Float32 = np.empty((0, 4), np.float32)

    def run(self, batch: StepBatch) -> Float32:
        logits = super().run(batch)
        hashes = []
        for s, table in enumerate(batch.block_tables):
            first, last = batch.row_starts[s : s + 2].tolist()
            at = batch.positions[first:last]
            hashes.append(self.hashes[table[at // self.limits.block_tokens], at % self.limits.block_tokens])
        self.hidden = _as_floats(np.concatenate(hashes))
        return logits

    def run_sequel(self, batch: StepBatch) -> tuple[Float32, Float32]:
        size, starts = self.limits.block_tokens, batch.row_starts.tolist()
        assert len(batch.tokens) == starts[-1] <= self.limits.step_tokens
        assert len(starts) - 1 <= self.limits.sequences
        assert batch.inputs is not None
        after = _as_hashes(batch.inputs) + (batch.tokens.astype(np.uint64) + np.uint64(1)) * POWERS[batch.positions + 1]
        for s, table in enumerate(batch.block_tables):
            first, last = starts[s], starts[s + 1]
            at = batch.positions[first:last]
            assert (at == np.arange(at[0], at[0] + len(at))).all()
            assert (table[at // size] >= 0).all(), "an entry without a block"
            self.pairs[table[at // size], at % size] = after[first:last]
        logits = np.zeros((len(batch.logit_rows), VOCABULARY), np.float32)
        for r, row in enumerate(batch.logit_rows):
            logits[r, next_token(after[row], int(batch.tokens[row]))] = 1
            if self.draw.random() < self.mistakes:
                logits[r, self.draw.randrange(VOCABULARY)] = self.draw.choice([2.0, np.nan])
        return logits, _as_floats(after[batch.logit_rows])


def _as_floats(hashes: np.ndarray) -> Float32:
    return np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, 4).astype(np.float32)


def _as_hashes(floats: Float32) -> np.ndarray:
    return np.ascontiguousarray(floats.astype(np.uint16)).view(np.uint64).reshape(-1)


class GuessingWorld(World):
    def __init__(self, seed: int, *, runs_ahead: bool) -> None:
        super().__init__(seed)
        draw = random.Random(seed)
        self.right = self.stale = self.late = 0
        self.model: GuessingExecutable = GuessingExecutable(
            self.limits, draw.choice([0.0, 0.1, 0.4]), runs_ahead=runs_ahead
        )
        self.guessing = MultiToken(self.model, self.limits, Ticks(draw.choice([0.0001, 0.001, 0.02])))  # type: ignore[arg-type]
        self.engine = Engine(
            self.model, self.limits, eos_token_ids=frozenset({0}), context_tokens=self.context_tokens,  # type: ignore[arg-type]
            vocabulary=VOCABULARY, tokenizer_json=no_tokenizer, draft=self.guessing,
        )  # fmt: skip
        if seed % 4:
            use(self.engine, Eager(self.guessing, seed))

    def step(self) -> None:
        before_s = self.guessing.spent_s
        super().step()
        self.now_s += self.guessing.spent_s - before_s
        running = {each.request.request_id: each for each in self.engine._scheduler._running}
        assert self.guessing._followers.keys() <= running.keys(), "rows of somebody who has left"
        for name, follower in self.guessing._followers.items():
            sequence = running[name]
            assert follower.first + len(follower.hidden) == sequence.reach
            self.look(sequence, min(follower.first, sequence.computed - 1))

    def look(self, sequence: Sequence, entries: int) -> None:
        """Entry p is of all tokens up to p + 1: but for a block's last one, which may be of another sequence's next
        token, and where another sequence's block has entries that are yet to come."""
        size, at = self.limits.block_tokens, np.arange(entries + 1)
        table = self.engine._scheduler._space.tables[sequence.slot]
        found = self.model.pairs[table[at // size], at % size][:-1]
        wrong = found != self.model.hashes[table[at // size], at % size][1:]
        self.right += int((~wrong).sum())
        self.stale += int(wrong[size - 1 :: size].sum())
        self.late += int(wrong.sum()) - int(wrong[size - 1 :: size].sum())


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_random_worlds(runs_ahead: bool) -> None:
    drafted = accepted = preempted = right = stale = late = unseen = 0
    for seed in range(14):
        world = GuessingWorld(seed, runs_ahead=runs_ahead)
        world.run(arrivals=60)
        for request in world.requests.values():
            world.check_reply(request)
        assert not world.guessing._followers
        drafted += world.guessing.drafted
        accepted += world.guessing.accepted
        preempted += world.preempted
        right += world.right
        stale += world.stale
        late += world.late
        unseen += world.model.unseen
    print(drafted, accepted, preempted, right, stale, late, unseen)
    assert (unseen > 2000) == runs_ahead
    assert accepted > 600
    assert drafted > accepted + 200
    assert preempted > 20
    assert stale + late < 0.02 * right
