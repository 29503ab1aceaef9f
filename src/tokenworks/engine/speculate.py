"""Which guesses are worth running: speculative decoding (Leviathan et al. 2023, arXiv 2211.17192), without loss.

A step may run guesses of a sequence's next tokens behind its last one. Each row is then sampled as if it were a step of
its own, with that position's own random number, and counts while the tokens before it proved right. So the output is
the same, token for token, greedy or sampled, and a guess is kept as often as the model itself would have said it.

A guess costs its row of the step, and a model's guess its share of that model's passes; it saves its share of a later
step if it proves right. All are known from what has been seen: the costs from the steps' and passes' times
(engine/payoff.py), the chance from how often such guesses were right (engine/lookup.py, engine/acceptance.py). `choose`
takes those that give the most tokens in a second: none where that is best. What a sequence's own text offers is known
without running it. A model's guesses are not: where they do not pay, one is tried now and then, for a small part of the
time.
"""

from collections.abc import Sequence as SequenceOf

from tokenworks.engine.payoff import StepCost
from tokenworks.engine.proposer import FromText, Proposer
from tokenworks.engine.sequence import Sequence

MOST_GUESSES = 20
"""Of one sequence in one step."""
_GAIN = 0.93
"""Guesses must make a token so much cheaper: a smaller gain may be an error of the estimates."""
_TRY = 0.02
"""The part of the time that goes to trying a model whose guesses do not pay."""
_CAUGHT_UP = 2
"""A model that guessed in the last step lacks as many tokens, one if its last guess was wrong."""

Offer = tuple[Proposer, SequenceOf[float]]
"""Who guesses for a sequence, and the chances."""
Counts = dict[int, int]
"""How many guesses run, by the sequence's index."""


class Speculator:
    """Pure: the caller hands in the times, and a model reads its own."""

    def __init__(self, most_tokens: int, model: Proposer | None = None) -> None:
        """A step never has more than `most_tokens` tokens."""
        self._cost = StepCost(most_tokens)
        self._text = FromText()
        self._model = model
        self._proposers: tuple[Proposer, ...] = (self._text, model) if model else (self._text,)
        self._whose: dict[str, Proposer] = {}
        """By request: who has guessed in this step."""
        self._spent_s = 0.0
        """By the proposers, before this step."""
        self._to_try_s = 0.0
        self._missed: dict[str, tuple[float, bool]] = {}
        """By request: seconds that the model would have saved had it seen the sequence, and that it now catches up."""

    @property
    def drafted(self) -> int:
        return sum(proposer.drafted for proposer in self._proposers)

    @property
    def accepted(self) -> int:
        return sum(proposer.accepted for proposer in self._proposers)

    def observe(self, tokens: int, seconds: float) -> None:
        """The last step was of decoding sequences only, had so many tokens, drafts included, and took so long, guessing
        included."""
        self._cost.observe(tokens, max(0.0, seconds - (self._spent() - self._spent_s)))
        self._to_try_s += _TRY * seconds

    def begin(self) -> None:
        """A step begins; the last one has been observed, if that can be."""
        self._spent_s = self._spent()

    def choose(self, sequences: SequenceOf[Sequence], room: int) -> list[tuple[int, list[int]]]:
        """Guesses for the decoding `sequences`, at most `room` tokens in all, as (index, the tokens to draft)."""
        self._whose.clear()
        counts, offers = self._decide(sequences, room, due=0)
        if any(offers[index][0] is self._model for index in counts):
            self._to_try_s = 0.0
        drafts: list[tuple[int, list[int]]] = []
        for proposer in self._proposers:
            chosen = [index for index in counts if offers[index][0] is proposer]
            guesses = proposer.propose([(sequences[index], counts[index]) for index in chosen])
            drafts += zip(chosen, guesses, strict=True)
            self._whose.update((sequences[index].request.request_id, proposer) for index in chosen)
        return drafts

    def tempted(self, sequences: SequenceOf[Sequence], room: int) -> bool:
        """`choose` would have guesses for decoding `sequences`, of which a token each is due, if these are as guessed:
        it is worth waiting for them."""
        return bool(self._decide(sequences, room, due=1)[0])

    def _decide(self, sequences: SequenceOf[Sequence], room: int, due: int) -> tuple[Counts, list[Offer]]:
        """Who guesses how much. due: tokens of each sequence that nobody has seen yet."""
        worth, least_chance = self._bounds(len(sequences), room)
        if least_chance >= 1:
            return {}, []
        left = [each.longest - len(each.tokens) - 1 - due for each in sequences]
        most = [max(0, min(room, MOST_GUESSES, count)) for count in left]
        texts: list[Offer] = [(self._text, self._text.chances(*each)) for each in zip(sequences, most, strict=True)]
        price, counts = self._select(texts, room, least_chance, worth * _GAIN)
        if self._model is None:
            return counts, texts
        own = [self._model.chances(*each) for each in zip(sequences, most, strict=True)]
        with_model = self._with_model(self._model, sequences, room, least_chance, texts, own, price or worth)
        if with_model is not None:
            return with_model
        return counts, self._with_a_try(self._model, sequences, texts, own, counts, room)

    def _bounds(self, decoding: int, room: int) -> tuple[float, float]:
        """Seconds that a token costs now, and the least chance that a draft row is worth running for; 1: none is."""
        plain = self._cost.of(decoding) if decoding else 0.0
        if room <= 0 or not plain:
            return 0.0, 1.0
        worth = plain / decoding
        ahead = min(room, 8)
        return worth, max(0.05, (self._cost.of(decoding + ahead) - plain) / ahead / worth)

    def made(self, sequence: Sequence, drafted: int, made: int) -> None:
        """A sequence has got `made` tokens, of which all but one were drafted."""
        whose = self._whose.get(sequence.request.request_id)
        for proposer in self._proposers:
            proposer.made(sequence, made, drafted if proposer is whose else 0)

    def left(self, sequence: Sequence) -> None:
        """A sequence ended, or lost its slot."""
        self._missed.pop(sequence.request.request_id, None)
        for proposer in self._proposers:
            proposer.left(sequence)

    def _spent(self) -> float:
        return sum(proposer.spent_s for proposer in self._proposers)

    def _select(self, offers: SequenceOf[Offer], room: int, least_chance: float, below: float) -> tuple[float, Counts]:
        """Of what is offered the most worthwhile part: seconds a token and who guesses how much, if that is `below`;
        else 0 and nobody."""
        ranked: list[tuple[float, int, int]] = []
        for index, (_, chances) in enumerate(offers):
            chance = 1.0
            for depth, one in enumerate(chances):
                chance *= one
                if chance < least_chance:
                    break
                ranked.append((chance, depth, index))
        ranked.sort(key=lambda each: -each[0])
        decoding = len(offers)
        expected, passes_s, best, taken = float(decoding), 0.0, below, 0
        passes: dict[tuple[Proposer, int], int] = {}
        """Tokens of each pass of each proposer."""
        for count, (chance, depth, index) in enumerate(ranked[:room], 1):
            expected += chance
            proposer = offers[index][0]
            if proposer is not self._text:
                tokens = passes.get((proposer, depth), 0)
                more = tokens + (1 if depth else _CAUGHT_UP)
                passes_s += proposer.seconds(more) - proposer.seconds(tokens)
                passes[proposer, depth] = more
            price = (self._cost.of(decoding + count) + passes_s) / expected
            if price < best:
                best, taken = price, count
        counts: Counts = {}
        for _, _, index in ranked[:taken]:
            counts[index] = counts.get(index, 0) + 1
        return (best if taken else 0.0), counts

    def _with_model(
        self,
        model: Proposer,
        sequences: SequenceOf[Sequence],
        room: int,
        least_chance: float,
        texts: list[Offer],
        own: SequenceOf[SequenceOf[float]],
        price: float,
    ) -> tuple[Counts, list[Offer]] | None:
        """What to run where the model guesses for those whose text says less; None if that costs more than `price`."""
        if not model.seconds(1):
            return None
        offers = [
            (model, chances) if chances and (not text[1] or chances[0] > text[1][0]) else text
            for text, chances in zip(texts, own, strict=True)
        ]
        with_model, counts = self._select(offers, room, least_chance, price * _GAIN)
        saved = price - with_model
        late = [
            index
            for index in counts
            if offers[index][0] is model and not self._worth_catching_up(model, sequences[index], saved)
        ]
        if late:
            for index in late:
                offers[index] = texts[index]
            _, counts = self._select(offers, room, least_chance, price * _GAIN)
        return (counts, offers) if any(offers[index][0] is model for index in counts) else None

    def _worth_catching_up(self, model: Proposer, sequence: Sequence, saved_s: float) -> bool:
        """Whether to run what the model has not seen of a sequence: once that costs less than the model would have
        saved by now (`saved_s` in this step), since a sequence may be expected to go on for as long as it has."""
        lacking, name = model.lacking(sequence), sequence.request.request_id
        missed_s, decided = self._missed.get(name, (0.0, False))
        if lacking <= _CAUGHT_UP:
            self._missed[name] = missed_s, False
            return True
        if not decided:
            missed_s += saved_s
            cost_s = model.seconds(lacking) - model.seconds(_CAUGHT_UP)
            decided = cost_s < min(missed_s, saved_s * (sequence.longest - len(sequence.tokens)))
            self._missed[name] = missed_s - cost_s * decided, decided
        return decided

    def _with_a_try(
        self,
        model: Proposer,
        sequences: SequenceOf[Sequence],
        texts: list[Offer],
        own: SequenceOf[SequenceOf[float]],
        counts: Counts,
        room: int,
    ) -> list[Offer]:
        """One guess of a model that does not pay, to see whether it would now; adds it to `counts` if it is time."""
        free = [index for index, chances in enumerate(own) if chances and index not in counts]
        if not free or sum(counts.values()) >= room:
            return texts
        index = min(free, key=lambda each: model.lacking(sequences[each]))
        decoding = len(sequences)
        price_s = model.seconds(model.lacking(sequences[index])) + self._cost.of(decoding + 1) - self._cost.of(decoding)
        if model.seconds(1) and self._to_try_s < price_s:
            return texts
        counts[index] = 1
        return [*texts[:index], (model, own[index]), *texts[index + 1 :]]
