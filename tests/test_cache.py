"""The cache: whole entries or none, whoever writes, whatever lies there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from autopeft.data.cache import Shelf, cache_folder, key_of


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("AUTOPEFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "autopeft"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_folder() == Path.home() / ".cache" / "autopeft"
    monkeypatch.setenv("AUTOPEFT_CACHE", "none")
    assert cache_folder() is None
    shelf = Shelf("any")
    shelf.put_values("key", {"a": 1})
    assert shelf.values("key") is None


def test_what_is_put_is_found_again() -> None:
    shelf = Shelf("any")
    assert shelf.values("k") is None
    assert shelf.arrays("a") is None
    shelf.put_values("k", {"a": [1, 2.5], "b": None})
    arrays = {"x": np.arange(5, dtype=np.int32), "y": np.zeros((0,), np.int8), "z": np.ones((2, 3), np.float32)}
    shelf.put_arrays("a", arrays)
    assert Shelf("any").values("k") == {"a": [1, 2.5], "b": None}
    found = Shelf("any").arrays("a")
    assert found is not None
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "folder"])
def test_a_damaged_entry_is_none_and_is_made_anew(damage: str) -> None:
    shelf = Shelf("any")
    shelf.put_values("k", {"a": 1})
    folder = cache_folder()
    assert folder is not None
    path = folder / "any" / "k"
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-1])
        case "changed":
            path.write_bytes(content[:-2] + b"2}")
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.unlink()
            path.mkdir()
    assert shelf.values("k") is None
    assert shelf.arrays("k") is None
    shelf.put_values("k", {"a": 3})
    assert shelf.values("k") == (None if damage == "folder" else {"a": 3})


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "file" / "below"))
    shelf = Shelf("any")
    shelf.put_values("k", {"a": 1})
    assert shelf.values("k") is None


def test_the_least_recently_used_go_first() -> None:
    shelf = Shelf("any", most_bytes=3000)
    folder = cache_folder()
    assert folder is not None
    for number, name in enumerate(("old", "used", "new")):
        shelf.put_arrays(name, {"x": np.zeros(800, np.int8)})
        os.utime(folder / "any" / name, (1000 + number, 1000 + number))
    assert shelf.arrays("old") is not None  # Its last use is now.
    shelf.put_arrays("more", {"x": np.zeros(800, np.int8)})
    assert sorted(path.name for path in (folder / "any").iterdir()) == ["more", "new", "old"]
    shelf.put_arrays("huge", {"x": np.zeros(2000, np.int8)})
    assert shelf.arrays("huge") is None


def test_many_writers_of_one_entry_leave_a_whole_one() -> None:
    shelf = Shelf("any")
    seen: list[bool] = []

    def write(number: int) -> None:
        for _ in range(20):
            shelf.put_arrays("k", {"x": np.full(20_000, number, np.int64)})
            found = shelf.arrays("k")
            seen.append(found is not None and len(set(found["x"].tolist())) == 1)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80
    assert all(seen)
    folder = cache_folder()
    assert folder is not None
    assert [path.name for path in (folder / "any").iterdir()] == ["k"]


def test_a_key_depends_on_every_part_and_not_on_their_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of({"a": 1}) != key_of({"b": 1})
