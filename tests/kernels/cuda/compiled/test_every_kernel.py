"""Every kernel is compiled for every chip: none becomes a trap or takes too much shared memory, or spills on sm_90."""

import pytest

pytest.importorskip("triton")

from all_kernels import entry_kernels, name_of
from compile_gate import CHIPS, SHARED_BYTES, assert_compiles, launches_of
from kernel_launches import LAUNCHES, VARIANTS

from tokenworks.kernels.cuda.attention import launch as attention


@pytest.mark.parametrize("name", LAUNCHES)
def test_compiles_for_every_chip(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for chip in CHIPS:
        monkeypatch.setattr(attention, "shared_bytes", lambda device: SHARED_BYTES[chip])  # noqa: B023
        for launch in launches_of(LAUNCHES[name]):
            assert_compiles(launch, [chip])


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_compile_for_hopper(name: str) -> None:
    for launch in launches_of(VARIANTS[name]):
        assert_compiles(launch)


def test_none_is_left_out() -> None:
    launched = {name_of(launch.kernel) for call in LAUNCHES.values() for launch in launches_of(call)}
    assert launched == entry_kernels()
