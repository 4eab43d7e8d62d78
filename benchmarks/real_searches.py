"""Real searches whose truth is known: LoRA against LoRA, on true and on shuffled labels, and a planted lead.

    python benchmarks/real_searches.py --data-root DIR [--only equal shuffled planted] [--most N] [--max-time 75s]

DIR holds the folder `sst2` with train.csv, validation.csv and test.csv (columns text and label). Each search is the
command line, on MiniLM with two workers, on rows of its own: train and validation rows are drawn anew from both files.

* ``equal``: LoRA against LoRA (A/A), ten searches;
* ``shuffled``: the same with labels that are shuffled within each split, ten searches;
* ``planted``: LoRA and trained token embeddings against LoRA, five searches, on a base whose vocabulary has two words
  that were never trained: their embeddings are both the mean of all others, as after a vocabulary was extended. In
  every second row the label is told by such a word. No adapter behind the embedding can tell the two apart, so that one
  placement leads by far more than three points.

One line per search goes to ``results/real_searches.jsonl``; searches on record are not repeated. When all 20 of the
first two kinds are there, `autopeft.evidence.calibration.REAL` counts them.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "real_searches.jsonl"
SEEDS: dict[str, range] = {"equal": range(10), "shuffled": range(10, 20), "planted": range(20, 25)}
ROWS = {"train": 3000, "validation": 800, "test": 400}
CODES = ("\u10d1", "\u0cb0")
"""Two single-character words of BERT's vocabulary that are in no review."""
CODED, WORDS = 0.5, 8
"""Where codes are planted: the share of rows whose label a code tells, and the words that are left of a review, few, so
that LoRA is trained well in the same time."""
SPACE = """name: lora-and-tokens
encoding: recipe
methods: [lora, trainable_tokens]
attention_sites: [qv, all]
share: [0.02, 1.0]
ceiling: 0.02
start: 0.0
rate_offset: [-1.6, 1.2]
batch: [8, 16, 32]
dropout: [0.0]
"""
INTERRUPTED = 4
"""The exit code of a search that was stopped by a signal."""
Row = tuple[str, str]


def model_folder() -> Path:
    """Where MiniLM lies."""
    command = [sys.executable, "-m", "autopeft.testing.real", "minilm"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def read_rows(file: Path) -> list[Row]:
    """Text and label of every row."""
    with file.open(newline="", encoding="utf-8") as lines:
        return [(row["text"], row["label"]) for row in csv.DictReader(lines)]


def write_data(data: Path, folder: Path, kind: str, seed: int) -> None:
    """The splits of one search: rows of its own, shuffled labels or codes where the kind has them."""
    rng = random.Random(seed)
    pool = read_rows(data / "train.csv") + read_rows(data / "validation.csv")
    test = read_rows(data / "test.csv")
    if kind == "planted":
        pool, test = ([(" ".join(text.split()[:WORDS]), label) for text, label in rows] for rows in (pool, test))
    rng.shuffle(pool)
    rng.shuffle(test)
    train, validation = ROWS["train"], ROWS["validation"]
    splits = {"train": pool[:train], "validation": pool[train : train + validation], "test": test[: ROWS["test"]]}
    folder.mkdir()
    for name, rows in splits.items():
        if kind == "shuffled":
            labels = [label for _, label in rows]
            rng.shuffle(labels)
            rows = [(text, label) for (text, _), label in zip(rows, labels, strict=True)]
        elif kind == "planted":
            rows = [coded(row, rng) if rng.random() < CODED else row for row in rows]
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(rows)


def coded(row: Row, rng: random.Random) -> Row:
    """The row with one of the codes in it, and the code's label."""
    words, code = row[0].split(), rng.randrange(2)
    words.insert(rng.randrange(len(words) + 1), CODES[code])
    return " ".join(words), str(code)


def extended(model: Path, folder: Path) -> Path:
    """A copy of the model to whose vocabulary the codes were just added: their embeddings are the mean of all."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, folder)
    weights = dict(load_file(folder / "model.safetensors"))
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    table = weights[name].copy()
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    table[[vocabulary.index(code) for code in CODES]] = table.mean(0)
    save_file({**weights, name: table}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def search(data: Path, kind: str, seed: int, max_time: str) -> dict[str, Any]:
    """One search; what is kept of it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, space, model = Path(temporary), "lora", model_folder()
        write_data(data, folder / "data", kind, seed)
        if kind == "planted":
            model = extended(model, folder / "model")
            space = str(folder / "space.yaml")
            Path(space).write_text(SPACE)
        command = [sys.executable, "-m", "autopeft", "search", "--model", str(model), "--data", str(folder / "data")]
        command += ["--space", space, "--max-params", "1%", "--max-time", max_time, "--workers", "2"]
        command += ["--seed", str(seed), "--out", str(folder / "run"), "--tracking-uri", "none"]
        code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
        if code == INTERRUPTED or not (folder / "run" / "result.json").exists():
            raise SystemExit(f"the {kind} search with seed {seed} ended with exit code {code}; it is not on record")
        return {"seed": seed, "kind": kind, "max_time": max_time, **kept(folder / "run" / "result.json")}


def kept(file: Path) -> dict[str, Any]:
    """The part of a result that is put on record; without a verdict it counts as one that ended in no tie."""
    result = json.loads(file.read_text())
    verdict = result["verdict"] or dict.fromkeys(("difference", "low", "high", "seeds")) | {"name": "none"}
    return {
        "verdict": verdict["name"],
        **{key: verdict[key] for key in ("difference", "low", "high", "seeds")},
        "trials": sum(result["trials"].values()),
        "seconds": round(result["wall_seconds"], 1),
        "message": result["message"],
    }


def known() -> list[dict[str, Any]]:
    """The searches that are on record."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def summary() -> str:
    """Counts by kind and verdict."""
    lines = []
    for kind in SEEDS:
        names = [row["verdict"] for row in known() if row["kind"] == kind]
        counts = ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))
        lines.append(f"{kind:<10}{len(names):>3} searches: {counts or 'none'}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print the counts."""
    parser = argparse.ArgumentParser(description="Real searches whose truth is known.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--most", type=int, help="searches to run now, of those that are missing")
    parser.add_argument("--max-time", default="75s", help="of each search")
    given = parser.parse_args(arguments)
    done = {(row["kind"], row["seed"]) for row in known()}
    missing = [(kind, seed) for kind in given.only for seed in SEEDS[kind] if (kind, seed) not in done]
    if given.data_root is None:
        print("no --data-root: nothing is run")
        missing = []
    for kind, seed in missing[: given.most]:
        row = search(given.data_root.resolve() / "sst2", kind, seed, given.max_time)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    print(summary())


if __name__ == "__main__":
    main()
