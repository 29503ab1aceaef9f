"""The audit's figures are those that transformers finds on the same text, and its advice follows from them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import write_model, write_text
from transformers import AutoModelForCausalLM

from tokenworks.bench.prompts import manual_texts
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.quant.audit import SCHEMES, Text, audit
from tokenworks.quant.audit_page import Circumstances, page
from tokenworks.quant.audit_plot import Point, plot
from tokenworks.quant.audit_report import as_objects
from tokenworks.quant.audit_types import STORED, Audit, Candidate
from tokenworks.quant.forward import Float32, Int32
from tokenworks.quant.grid import grid_bits, stored_as
from tokenworks.quant.measure import Divergence
from tokenworks.quant.recommend import recommend
from tokenworks.quant.rounding import round_to_nearest
from tokenworks.quant.schemes import SchemeName
from tokenworks.quant.served import Served
from tokenworks.quant.task_questions import TASKS, Task
from tokenworks.quant.tasks import ANSWERS, Marks, alike_until, answer, as_questions
from tokenworks.quant.tensors import kernel_tensor
from tokenworks.quant.text import windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Text:
    words = write_text(tmp_path_factory.mktemp("text") / "text.txt").read_text()
    tokenizer = load_tokenizer(folder)
    return Text(
        windows([words], tokenizer, count=5, length=100),
        windows([words], tokenizer, count=8, length=20),
        as_questions(TASKS[::7], tokenizer),
    )


@pytest.fixture(scope="module")
def found(folder: Path, text: Text) -> Audit:
    checkpoint = open_checkpoint(folder)
    steps: list[tuple[int, int, str]] = []
    done = audit(
        "small", checkpoint.program(), checkpoint.tensors, text, CpuBackend(), threads=1, max_loss=0.02,
        progress=lambda done, total, what: steps.append((done, total, what)),
    )  # fmt: skip
    assert [done for done, _, _ in steps] == list(range(steps[0][1]))  # every step said once, none beyond the total
    return done


def test_figures_are_those_of_transformers(folder: Path, text: Text, found: Audit) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.from_numpy(text.windows).long()

    def log_probabilities() -> torch.Tensor:
        with torch.no_grad():
            return model(tokens).logits[:, :-1].log_softmax(2)

    def perplexity(rows: torch.Tensor) -> float:
        return float((-rows.gather(2, tokens[:, 1:, None]).mean()).exp())

    reference = log_probabilities()
    assert found.tokens == reference.shape[0] * reference.shape[1]
    assert found.reference_perplexity == pytest.approx(perplexity(reference), rel=1e-4)

    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.from_numpy(round_to_nearest("nvfp4", weight.numpy()).dequantise()))
    rounded = log_probabilities()
    nvfp4 = next(each for each in found.candidates if each.precision == "nvfp4").weights_only
    assert nvfp4.perplexity == pytest.approx(perplexity(rounded), rel=1e-4)
    kl = (reference.exp() * (reference - rounded)).sum(2).mean()
    assert nvfp4.kl == pytest.approx(float(kl), rel=1e-3) and nvfp4.kl > 0.01
    assert nvfp4.top1_agreement == pytest.approx(float((reference.argmax(2) == rounded.argmax(2)).float().mean()))


def test_each_cost_is_seen_by_itself(found: Audit) -> None:
    by_name = {each.precision: each for each in found.candidates}
    assert list(by_name) == [STORED, *SCHEMES]
    stored = by_name[STORED]
    assert stored.weights_only.kl == pytest.approx(0, abs=1e-6) and stored.weights_only.top1_agreement == 1
    assert 0 <= stored.served.kl < stored.kv_int8.kl  # float32 weights, so only the cache rounds anything
    assert by_name["nvfp4"].weights_only.kl > 20 * by_name["int8"].weights_only.kl > 0
    for name in SCHEMES:
        assert by_name[name].served.kl != by_name[name].weights_only.kl or name == "fp8"
        assert by_name[name].weight_bytes < stored.weight_bytes
    assert by_name["nvfp4"].weight_bytes < by_name["int8"].weight_bytes
    assert all(each.prefill_tok_s > 0 and each.decode_tok_s > 0 for each in found.candidates)
    assert by_name["nvfp4"].greedy_alike < stored.greedy_alike <= 1
    assert by_name["nvfp4"].same_answers <= stored.same_answers <= 1
    assert found.grid_bits is None and all(each.caution is None for each in found.candidates)


def test_report_and_page(found: Audit) -> None:
    objects = as_objects([found])
    wanted = {"precision", "bytes", "perplexity", "kl", "top1_agreement", "prefill_tok_s", "decode_tok_s", "reason"}
    assert all(wanted <= each.keys() for each in objects)
    assert [each["precision"] for each in objects if each["recommended"]] == [found.recommended]

    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open_tags: list[str] = []
            self.points = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag != "script" and not any(name in ("src", "href") for name, _ in attrs)
            self.points += tag == "circle"
            if tag != "meta" and not (self.get_starttag_text() or "").endswith("/>"):
                self.open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.handle_starttag(tag, attrs)

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    parser = Page()
    about = Circumstances("a text", "a machine", "tokenworks audit '<x>'", "2026-01-01")
    written = page([replace(found, model="<b>&"), found], about)
    parser.feed(written)
    assert parser.open_tags == [] and parser.points == 2 * 2 * 2 * len(
        found.candidates
    )  # two models, two plots, two points each
    assert "&lt;b&gt;&amp;" in written and f"{found.reference_perplexity:.3f}" in written
    assert "a machine, 2026-01-01" in written and "tokenworks audit &#x27;&lt;x&gt;&#x27;" in written
    assert written.count('class="advice"') == 2 and "<b>&" not in written


def test_names_in_a_plot_cover_nothing() -> None:
    crowd = [Point(f"name{i}", 100.0 + i, 0.01 * (1 + 0.02 * i), 0.005, i == 0, False) for i in range(5)]
    drawn = plot("A title", "speed", crowd)
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>(name\d[^<]*)</text>', drawn)
    points = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="5.0"', drawn)
    boxes = [(float(x), float(y) - 12, float(x) + 7 * len(name), float(y)) for x, y, name in names]
    assert len(boxes) == 5 and len(points) == 10
    for (left, top, right, bottom), (other_left, other_top, other_right, other_bottom) in combinations(boxes, 2):
        assert right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
    for left, top, right, bottom in boxes:
        assert not any(left < float(x) < right and top < float(y) < bottom for x, y in points)


def candidate(name: str, loss: float, mb: float, decode_tok_s: float) -> Candidate:
    divergence = Divergence(1000, 10.0, 10.0 * (1 + loss), loss, 0.9)
    marks = Marks((), np.empty(0, np.int64))
    return Candidate(
        name, "F32", int(mb * 1e6), divergence, divergence, divergence, marks, 1.0, 1.0, 100.0, decode_tok_s, 10.0, None
    )  # fmt: skip


@pytest.mark.parametrize(
    ("others", "best"),
    [
        ([("int8", 0.001, 50, 200), ("nvfp4", 0.07, 28, 380)], "int8"),  # nvfp4 is faster and loses too much
        ([("int8", 0.001, 50, 200), ("nvfp4", 0.015, 28, 380)], "nvfp4"),
        ([("int8", 0.001, 98, 105), ("fp8", 0.001, 99, 104)], STORED),  # not worth a conversion
        ([("int8", 0.001, 50, 101), ("fp8", 0.001, 99, 109)], "int8"),  # as fast within noise, smaller
        ([("int8", 0.03, 50, 300), ("fp8", 0.001, 50, 50)], STORED),
    ],
)
def test_recommendation(others: list[tuple[str, float, float, float]], best: str) -> None:
    candidates = [candidate(STORED, 0.0, 100, 100), *(candidate(*each) for each in others)]
    recommended, reasons = recommend(candidates, 0.02)
    assert recommended == best
    assert reasons.keys() == {each.precision for each in candidates} and all(reasons.values())


def test_least_lossy_where_all_lose_too_much() -> None:
    recommended, reasons = recommend([candidate(STORED, 0.05, 100, 100), candidate("nvfp4", 0.2, 28, 400)], 0.02)
    assert recommended == STORED and "all lose more than 2.0%" in reasons[STORED]


SCHOOL = [Task("facts", "abc", ("de", "dz", "d", "xyz")), Task("code", "m", ("n", "o", "p", "q"))]


def test_tasks_of_a_model_that_knows_the_alphabet(folder: Path) -> None:
    asked = as_questions(SCHOOL, load_tokenizer(folder))
    assert asked.windows.shape == (len(SCHOOL) * ANSWERS, 6)  # one token a character
    assert asked.answered.sum(axis=1).tolist() == [2, 2, 1, 3, 1, 1, 1, 1]
    assert asked.answered[0].tolist() == [False, False, True, True, False]  # "de" is found behind "c" and "d"

    def counting(step: int, sure: float) -> Callable[[Int32, int], Iterator[tuple[Int32, Float32]]]:
        """A model that believes that a character is followed by the one `step` further."""

        def logits(tokens: Int32, first: int) -> Iterator[tuple[Int32, Float32]]:
            for number, window in enumerate(tokens):
                rows = np.zeros((len(window) - 1 - first, 128), np.float32)
                rows[np.arange(len(rows)), (window[first:-1] + step) % 128] = sure
                yield np.array([number], np.int32), rows

        return logits

    knows = answer(asked, counting(1, 9))
    # "d" alone is likelier than "d" and "e", whatever one knows: answers are to be of about the same length.
    assert knows.picks.tolist() == [2, 0] and knows.right == 0.5
    assert (knows.right_of("facts"), knows.right_of("code")) == ((0, 1), (1, 1))
    astray = answer(asked, counting(2, 9))
    assert astray.picks.tolist()[1] == 1 and knows.same(astray) <= 0.5
    assert answer(asked, counting(1, 0)).picks[1] != 0  # all alike: it knows nothing


def test_the_tasks_are_well_made() -> None:
    assert len(TASKS) == 60 and {task.kind for task in TASKS} == {"facts", "arithmetic", "code"}
    assert all(len(set(task.answers)) == len(task.answers) == ANSWERS for task in TASKS)
    assert len({task.prompt for task in TASKS}) == len(TASKS)


def test_smollm2_knows_most_facts(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    served = Served(CpuBackend(), checkpoint.program(), checkpoint.tensors, "int8", 2)
    tokenizer = load_tokenizer(smollm2)
    marks = answer(as_questions(TASKS[:20], tokenizer), served.logits)
    assert marks.right >= 0.9
    prompts = windows(manual_texts(), tokenizer, count=3, length=24)
    together = served.greedy(prompts, 20)
    alone = np.concatenate([served.greedy(prompts[row : row + 1], 20) for row in range(len(prompts))])
    np.testing.assert_array_equal(together, alone)
    assert alike_until(together, alone) == 1


def test_alike_until_the_first_difference() -> None:
    one = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
    assert alike_until(one, np.array([[1, 2, 9, 4], [5, 6, 7, 8]], np.int32)) == 6 / 8


def _stored(numbers: Float32, form: str) -> Tensor:
    data = numbers.astype({"F16": "<f2", "F32": "<f4"}[form])
    return Tensor("w", form, numbers.shape, data.view(np.uint8).reshape(-1))


def test_the_grid_that_stored_weights_lie_on(smollm2: Path) -> None:
    tensors = open_checkpoint(smollm2).tensors
    q4 = tensors["layers.0.q"]
    assert grid_bits([q4]) == 4 and grid_bits([tensors["embed"]]) == 8
    assert grid_bits([_stored(dequantise(q4), "F16")]) == 4  # widened: still the same 16 numbers to a block
    plain = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    assert grid_bits([_stored(plain, "F16")]) is None and grid_bits([_stored(plain, "F32")]) is None
    assert grid_bits([_stored(round_to_nearest("mxfp4", plain).dequantise(), "F32")]) == 4
    assert stored_as(tensors) == "Q4_1, Q8_0"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_kernels_get_the_same_numbers(scheme: SchemeName) -> None:
    weight = np.random.default_rng(1).normal(size=(24, 128)).astype(np.float32)
    quantised = round_to_nearest(scheme, weight)
    np.testing.assert_array_equal(dequantise(kernel_tensor("w", quantised)), quantised.dequantise())
