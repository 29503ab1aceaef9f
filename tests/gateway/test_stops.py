from hypothesis import given
from hypothesis import strategies as st

from tokenworks.gateway.stops import StopStrings

letters = st.text("ab\n", max_size=12)


def slow(text: str, stops: tuple[str, ...]) -> str:
    """The text up to where the first stop string to be completed begins (the longest wins a tie)."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(st.lists(letters, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_letter_by_letter_it_stops_where_a_slow_search_does(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    stream, shown = StopStrings(tuple(stops)), ""
    for letter in text:
        shown += stream.push(letter)
        if stream.matched is not None:
            break
    else:
        shown += stream.flush()
    assert shown == slow(text, tuple(stops))


@given(letters, st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_shown_can_turn_out_to_be_part_of_a_stop_string(text: str, stops: list[str]) -> None:
    stream, shown = StopStrings(tuple(stops)), ""
    for at, letter in enumerate(text, 1):
        shown += stream.push(letter)
        if stream.matched is not None:
            return
        for stop in stops:
            for cut in range(len(stop)):
                assert slow(text[:at] + stop[cut:], tuple(stops)).startswith(shown)


def test_before_it_is_armed_text_passes_and_cannot_begin_a_stop_string() -> None:
    stream = StopStrings(("END",))
    assert stream.push("E", armed=False) == "E"
    assert stream.push("ND") == "ND"
    assert stream.push("END") == ""
    assert stream.matched == "END"
