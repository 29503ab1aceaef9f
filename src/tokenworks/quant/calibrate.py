"""Quantises a model's weights in the order its program uses them, each on the inputs that the ones before it make.

With a calibration text, every linear layer is rounded with compensation (rounding.py) on the inputs that it will get
from the already quantised layers, and towards the outputs that the unquantised model has there: two passes run side by
side, and a weight is first moved to the one that fits the unquantised outputs best on the inputs it will really get
(the asymmetric calibration of GPTAQ, Li et al. 2025, arXiv 2504.02692, solved by least squares). Layers that write to
the residual stream also take back what they can of the error that has gathered there. Without a text each weight is
rounded to nearest.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import Add, Embed, Experts, Linear, Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.quant.forward import Float32, Forward, Int32, expert_maps, linear_output, plain_product
from tokenworks.quant.recipe import Choice
from tokenworks.quant.rounding import Float64, compensate, curvature, gram, round_to_nearest
from tokenworks.quant.schemes import Quantised, SchemeName

Progress = Callable[[int, int, str], None]
"""Called with the number of finished weights, that of all, and the name of the one that comes next."""

RIDGE = 0.3
"""Of the inputs' mean square, added when a weight is fitted to them: a short text is not followed blindly."""


class Memory(Protocol):
    """Where finished work is kept (on disk: work.py), so that an interrupted run can go on."""

    def weight(self, name: str) -> Quantised | None: ...

    def keep_weight(self, name: str, weight: Quantised) -> None: ...

    def restore(self, passes: Mapping[str, Forward]) -> None:
        """Sets the passes to where they were when they were last kept, if they were."""

    def keep_passes(self, passes: Mapping[str, Forward]) -> None: ...


def quantise(
    program: Program,
    weights: Mapping[str, Tensor],
    choices: Mapping[str, Choice],
    windows: Int32 | None,
    memory: Memory,
    progress: Progress,
) -> dict[str, Quantised]:
    """The weights whose choice is not "keep", quantised; `windows` [count, length] is the calibration text."""
    wanted = [name for name, choice in choices.items() if choice != "keep"]
    job = _Job(program, weights, choices, memory, lambda done, name: progress(done, len(wanted), name))
    tables = {instruction.table for instruction in program.instructions if isinstance(instruction, Embed)}
    for name in wanted:
        if windows is None or name in tables:
            job.round(name)
    if windows is not None:
        job.calibrate(windows, wanted)
    return {name: job.done[name] for name in wanted}


@dataclass(slots=True)
class _Job:
    program: Program
    weights: Mapping[str, Tensor]
    choices: Mapping[str, Choice]
    memory: Memory
    progress: Callable[[int, str], None]
    done: dict[str, Quantised] = field(default_factory=dict)
    _peaks: dict[str, float] = field(default_factory=dict)
    _together: dict[str, tuple[str, ...]] = field(init=False)
    """The weights that run as one product with each."""

    def __post_init__(self) -> None:
        runs: list[tuple[str, ...]] = []
        for step in self.program.instructions:
            if isinstance(step, Linear):
                runs.append(step.weights)
            elif isinstance(step, Experts):
                runs += [each.weights for expert in step.experts for each in expert_maps(step, expert)]
        self._together = {}
        for names in reversed(runs):
            self._together |= dict.fromkeys(names, names)

    def round(self, name: str) -> None:
        """One weight, by itself."""
        scheme = self.choices[name]
        assert scheme != "keep"
        self._finish(name, lambda: round_to_nearest(scheme, dequantise(self.weights[name]), peak=self._peak(name)))

    def calibrate(self, windows: Int32, wanted: list[str]) -> None:
        """All others of `wanted`, in the program's order."""
        exact = Forward(self.program, self.weights, windows)
        quantised = Forward(self.program, self._tables(), windows)
        passes = {"exact": exact, "quantised": quantised}
        self.memory.restore(passes)
        for instruction in self.program.instructions[: quantised.at]:
            names: tuple[str, ...] = ()
            if isinstance(instruction, Linear):
                names = instruction.weights
            elif isinstance(instruction, Experts):
                names = tuple(name for expert in instruction.experts for name in expert.weights)
            self.done |= {name: kept for name in names if (kept := self.memory.weight(name)) is not None}
        plain = plain_product(self.weights)
        while not set(wanted) <= self.done.keys():
            step = quantised.next
            if isinstance(step, Linear):
                aim, drift = exact.input(step.x), _drift(step, exact, quantised)
                quantised.step(lambda linear, x, aim=aim, drift=drift: self._linear(linear, x, aim, drift))  # type: ignore[misc]
            elif isinstance(step, Experts):
                quantised.step(self._expert)
            else:
                quantised.step(plain)
            exact.step(plain)
            if isinstance(step, Add):
                self.memory.keep_passes(passes)

    def _tables(self) -> Mapping[str, Tensor]:
        """The weights, with tables that are quantised already as they are now."""
        numbers = {name: weight.dequantise() for name, weight in self.done.items()}
        changed = {
            name: Tensor(name, "F32", rows.shape, rows.view(np.uint8).reshape(-1)) for name, rows in numbers.items()
        }
        return {**self.weights, **changed}

    def _linear(self, linear: Linear, x: Float32, aim: Float32, drift: Float32 | None) -> Float32:
        """Quantises the layer's weights, whose input is `x` where the unquantised model has `aim`; their output."""
        missing = [name for name in linear.weights if self.choices[name] != "keep" and name not in self.done]
        if missing:
            h = gram(x)
            text = curvature(h)
            towards_aim = _regression(h, x, aim - x)
            against_drift = None if drift is None else _regression(h, x, drift)
            fresh = {name: dequantise(self.weights[name]) for name in linear.weights if self.choices[name] != "keep"}
            for name, weight in fresh.items():
                fresh[name] = weight + weight @ towards_aim
                if against_drift is not None:
                    fresh[name] += against_drift
            peak = _largest(fresh.values())
            for name in missing:
                scheme = self.choices[name]
                assert scheme != "keep"
                self._finish(name, lambda scheme=scheme, name=name: compensate(scheme, fresh[name], text, peak=peak))  # type: ignore[misc]
        return linear_output(x, self._matrices(linear), linear, self.weights)

    def _expert(self, linear: Linear, x: Float32) -> Float32:
        """Quantises some maps of one expert on the inputs of the tokens that chose it, if any did; their output.

        A token's experts may be others than in the unquantised model, so there is nothing to aim at but the weights.
        """
        missing = [name for name in linear.weights if self.choices[name] != "keep" and name not in self.done]
        text = curvature(gram(x)) if missing and len(x) else None
        for name in missing:
            scheme = self.choices[name]
            assert scheme != "keep"

            def make(name: str = name, scheme: SchemeName = scheme) -> Quantised:
                weight, peak = dequantise(self.weights[name]), self._peak(name)
                if text is None:
                    return round_to_nearest(scheme, weight, peak=peak)
                return compensate(scheme, weight, text, peak=peak)

            self._finish(name, make)
        return linear_output(x, self._matrices(linear), linear, self.weights)

    def _matrices(self, linear: Linear) -> list[Float32]:
        """As they are now."""
        return [
            self.done[name].dequantise() if name in self.done else dequantise(self.weights[name])
            for name in linear.weights
        ]

    def _peak(self, name: str) -> float:
        """The largest number of the weights that run as one product with this one. They are to have one NVFP4 scale:
        engines that join their tensors have room for no more, and some files join them already."""
        if name not in self._peaks:
            together = self._together.get(name, (name,))
            chosen = [each for each in together if self.choices.get(each, "keep") != "keep"]
            self._peaks |= dict.fromkeys(together, _largest(dequantise(self.weights[each]) for each in chosen))
        return self._peaks[name]

    def _finish(self, name: str, make: Callable[[], Quantised]) -> None:
        self.progress(len(self.done), name)
        kept = self.memory.weight(name)
        if kept is None:
            kept = make()
            self.memory.keep_weight(name, kept)
        self.done[name] = kept
        self.progress(len(self.done), name)


def _largest(weights: Iterable[Float32]) -> float:
    return max(float(np.abs(weight).max()) for weight in weights)


def _drift(linear: Linear, exact: Forward, quantised: Forward) -> Float32 | None:
    """Where the layer's output joins the residual stream: how far that is from the unquantised model's there."""
    following = quantised.program.instructions[quantised.at + 1 : quantised.at + 2]
    if not following or not isinstance(following[0], Add) or len(linear.weights) != 1:
        return None
    join = following[0]
    stream = join.b if join.a == linear.output else join.a
    return exact.input(stream) - quantised.input(stream)


def _regression(h: Float64, x: Float32, target: Float32) -> Float32:
    """[columns of target, in_features] M, so that x M^T is nearest to `target` [rows, columns]; `h` is gram(x)."""
    damped = h.copy()
    damped[np.diag_indices_from(damped)] += RIDGE * float(h.diagonal().mean()) + 1e-12
    return np.linalg.solve(damped, (x.T @ target).astype(np.float64) / len(x)).T.astype(np.float32)
