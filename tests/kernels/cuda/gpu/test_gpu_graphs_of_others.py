"""Graphs of steps that are not plain decodes: with adapters, with guesses, of a layer that guesses. Each step twice: it
is captured, then replayed."""

import adapted_model
import numpy as np
import pytest
from chunked_steps import assert_close, by_graph_and_eagerly
from guessing_model import LAYERS, LIMITS, VOCABULARY, model, passes

from tokenworks.kernels.backend import Backend
from tokenworks.kernels.reference import ReferenceBackend

GUESSES = [([4], -1), ([12, 13, 14], 0), ([13], 1), ([15, 16], 3)]


@pytest.mark.parametrize("forms", adapted_model.FORMS)
def test_adapters(forms: str, backend: Backend) -> None:
    ours, theirs = (adapted_model.model(each, forms) for each in (backend, ReferenceBackend()))
    for parts in (adapted_model.MIXED, GUESSES):
        step = adapted_model.batch_of(parts)
        by_graph, eager = by_graph_and_eagerly(ours, step)
        np.testing.assert_array_equal(by_graph, eager)
        right = theirs.run(step)
        np.testing.assert_allclose(by_graph, right, rtol=0, atol=0.012 * np.ptp(right))
    ours.load_adapter(4, adapted_model.adaptation(1))  # its memory moves
    np.testing.assert_array_equal(by_graph_and_eagerly(ours, step)[0], by_graph)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_guesses(layer: str, backend: Backend) -> None:
    ours, theirs = (each.compile(*model(layer), LIMITS) for each in (backend, ReferenceBackend()))
    right = passes(theirs)
    for _ in range(2):
        for mine, wanted in zip(passes(ours), right, strict=True):
            if mine.shape[1] == VOCABULARY:
                assert_close(mine, wanted)
            else:
                np.testing.assert_allclose(mine, wanted, atol=0.02 * np.ptp(wanted))
