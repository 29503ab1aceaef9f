"""How long a worker may be silent follows from what its steps have taken."""

from tokenworks.fleet.patience import FACTOR, FIRST_FACTOR, FLOOR_S, LIMIT_S, Patience


def taught(*steps: tuple[float, float]) -> Patience:
    patience = Patience()
    for silence_s, share in steps:
        patience.step(silence_s, share)
    return patience


def test_nothing_known_is_the_longest() -> None:
    assert Patience().limit_s == LIMIT_S


def test_a_fast_model_is_given_the_least() -> None:
    assert taught((0.3, 1.0), (0.005, 1 / 512)).limit_s == FLOOR_S


def test_a_small_step_foretells_the_largest_one() -> None:
    assert taught((0.04, 1 / 128)).limit_s == FACTOR * 0.04 * 128
    assert taught((2.0, 1 / 512)).limit_s == LIMIT_S, "a large model that decodes: its prompts may take minutes"


def test_the_largest_step_knows_best() -> None:
    patience = taught((0.04, 1 / 128), (4.0, 1.0))
    assert patience.limit_s == FACTOR * 4.0
    patience.step(5.0, 0.5)
    assert patience.limit_s == FACTOR * 5.0, "slower with less to do: the machine is busy, or the context is long"
    patience.step(1.0, 1.0)
    assert patience.limit_s == FACTOR * 5.0


def test_the_first_step_of_another_process_may_fetch_its_weights() -> None:
    patience = taught((3.0, 1.0))
    patience.begin()
    assert patience.limit_s == FIRST_FACTOR * FACTOR * 3.0
    assert patience.step(3.0, 0.1), "shorter from now on"
    assert patience.limit_s == FACTOR * 3.0
