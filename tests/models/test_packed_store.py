"""The folder of packed weights: whose file is where, what goes when it is full, what a dead writer leaves."""

import os
from pathlib import Path

import pytest

from tokenworks.models.files import packed_store
from tokenworks.models.files.packed_store import PackedPlace, place_of


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))


def place(tmp_path: Path, name: str, limit_mb: int = 10) -> PackedPlace:
    path = tmp_path / f"{name}.gguf"
    if not path.exists():
        path.write_bytes(b"GGUF" + name.encode())
    found = place_of(path, limit_mb)
    assert found is not None
    return found


def fill(where: PackedPlace, size_bytes: int, used_s: int = 0) -> None:
    with where.locked(wait=False) as mine, where.new_file(size_bytes) as file:
        assert mine
        os.write(file, bytes(size_bytes))
    os.utime(where.path, (used_s, where.path.stat().st_mtime))


def test_each_path_has_its_own_place_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    a, b, same_name = place(tmp_path, "a"), place(tmp_path, "b"), place(tmp_path / "other", "a")
    assert len({a.path, b.path, same_name.path}) == 3
    os.utime(tmp_path / "a.gguf", (1, 1))
    touched = place(tmp_path, "a")
    assert touched.path == a.path and touched.sources != a.sources


def test_a_folders_place_knows_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors", "README.md"):
        (folder / name).write_text(name)
    found = place_of(folder, 1)
    assert found is not None
    assert [Path(s.path).name for s in found.sources] == ["config.json", "model-1.safetensors", "model-2.safetensors"]
    (folder / "config.json").write_text("config.jsoo")
    changed = place_of(folder, 1)
    assert changed is not None and changed.sources[0].head_sha256 != found.sources[0].head_sha256


def test_each_dtype_has_its_own_place(tmp_path: Path) -> None:
    plain = place(tmp_path, "a")
    rounded = place_of(tmp_path / "a.gguf", 10, "bfloat16")
    assert rounded is not None and rounded.path != plain.path and rounded.sources == plain.sources


def test_none_is_kept_when_the_limit_is_nothing(tmp_path: Path) -> None:
    assert place_of(tmp_path, 0) is None


def test_the_one_unused_for_longest_goes_first(tmp_path: Path) -> None:
    a, b, c = (place(tmp_path, name) for name in "abc")
    fill(a, 4 << 20, used_s=200)
    fill(b, 4 << 20, used_s=100)
    fill(c, 4 << 20, used_s=300)
    assert [each.path for each in packed_store.everything()] == [a.path, c.path]
    a.used()
    fill(b, 4 << 20, used_s=400)
    assert {each.path for each in packed_store.everything()} == {a.path, b.path}


def test_what_is_larger_than_the_folder_may_be_deletes_nothing(tmp_path: Path) -> None:
    fill(place(tmp_path, "a"), 4 << 20)
    with pytest.raises(OSError, match="no room"):
        fill(place(tmp_path, "b"), 11 << 20)
    assert len(packed_store.everything()) == 1


def test_a_disk_that_is_nearly_full_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_store, "FREE_SHARE", 1.0)
    with pytest.raises(OSError, match="no room"):
        fill(place(tmp_path, "a"), 100)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    a = place(tmp_path, "a")
    fill(a, 10)
    with pytest.raises(RuntimeError), a.locked(wait=False), a.new_file(20) as file:
        os.write(file, bytes(15))
        raise RuntimeError
    assert a.path.stat().st_size == 10
    assert list(a.path.parent.iterdir()) == [a.path]


def test_only_one_writes_at_a_time(tmp_path: Path) -> None:
    a = place(tmp_path, "a")
    with a.locked(wait=False) as first, a.locked(wait=False) as second:
        assert first and not second
    with a.locked(wait=False) as third:
        assert third


def test_what_a_dead_writer_left_is_deleted_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    a, b = place(tmp_path, "a"), place(tmp_path, "b")
    a.path.parent.mkdir(parents=True)
    dead, living = a.path.with_suffix(".part"), b.path.with_suffix(".part")
    dead.write_bytes(b"half")
    living.write_bytes(b"half")
    with b.locked(wait=False):
        packed_store.everything()
        assert not dead.exists() and living.exists()
