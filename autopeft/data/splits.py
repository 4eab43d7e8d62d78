"""Missing splits are cut from the training rows, and shared rows are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from autopeft.errors import InputError

SHARE = 0.1
"""Share of the rows that a missing split takes."""
SMALLEST, LARGEST = 50, 2000
"""Bounds of the rows that a missing split takes."""
_FEWEST_ROWS = 12
_SALT = {"validation": 1, "test": 2}


def fill_splits(
    tables: Mapping[str, pa.Table], texts: Sequence[str], label: str | None, *, seed: int
) -> tuple[dict[str, pa.Table], list[str]]:
    """Cut what is missing of validation and test from train.

    Each missing split takes 10 % of the rows, at least 50 and at most 2,000, but never more than a quarter. Rows with
    the same texts stay together, so that no row of a new split is also trained on; the classes keep their shares, and
    every class keeps a training row.

    Args:
        tables: Standardised splits.
        texts: The text columns; for ``causal_lm`` the prompt column alone, so that answers to one prompt stay together.
        label: The class column, or None when there are no classes.
        seed: Seed of the cut.

    Returns:
        All three splits, and a note for each that was cut.

    Raises:
        InputError: When there are too few rows to cut from.
    """
    filled = dict(tables)
    notes = []
    missing = [split for split in ("validation", "test") if split not in tables]
    total = tables["train"].num_rows
    if missing and total < _FEWEST_ROWS:
        raise InputError.one(
            "data.train",
            f"{total} rows",
            f"too few to cut {' and '.join(missing)} from; at least {_FEWEST_ROWS} are needed",
            "Give more rows, or all three splits",
        )
    size = min(max(SMALLEST, round(SHARE * total)), LARGEST, total // 4)
    for split in missing:
        train = filled["train"]
        rng = np.random.default_rng([seed, _SALT[split]])
        taken = _choose(train, texts, label, size, rng)
        if not taken.any() or taken.all():
            raise InputError.one(
                "data.train",
                f"{total} rows",
                f"no {split} split can be cut: rows with the same texts stay together, and every class keeps one",
                "Give more distinct rows, or all three splits",
            )
        filled[split], filled["train"] = train.filter(pa.array(taken)), train.filter(pa.array(~taken))
        stratified = ", each class in proportion" if label else ""
        notes.append(
            f"There is no {split} split: {int(taken.sum()):,} rows were cut from train (seed {seed}{stratified})."
        )
    return {split: filled[split] for split in ("train", "validation", "test")}, notes


def _choose(
    table: pa.Table, texts: Sequence[str], label: str | None, size: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which rows to take, bool `[rows]`: about `size` of them."""
    groups = _groups(table, texts)
    count = int(groups.max()) + 1
    first = np.unique(groups, return_index=True)[1]
    order = rng.permutation(count)
    if label is not None:
        classes = np.unique(np.asarray(table.column(label).to_pylist(), dtype=object).astype(str), return_inverse=True)[
            1
        ]
        order = order[np.argsort(classes[first][order], kind="stable")]
        # The first group of every class in this order stays in train.
        kept = np.concatenate([[True], np.diff(classes[first][order]) != 0])
        order = order[~kept]
    wanted = min(len(order), max(1, round(size * count / table.num_rows)))
    chosen = np.zeros(count, dtype=bool)
    # Evenly spaced places in the order by class: every class is met in proportion to its groups.
    chosen[order[np.floor((np.arange(wanted) + rng.random()) * len(order) / max(wanted, 1)).astype(np.int64)]] = True
    return chosen[groups]


def _groups(table: pa.Table, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number of the group of rows with the same texts, int64 `[rows]`."""
    numbers: dict[tuple[str, ...], int] = {}
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in _keys(table, texts)], dtype=np.int64)


def _keys(table: pa.Table, texts: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(table.column(name).to_pylist() for name in texts), strict=True))


PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))
"""A split that was learned or chosen by, and one that is judged on."""


def shared_rows(
    tables: Mapping[str, pa.Table], texts: Sequence[str], pairs: Sequence[tuple[str, str]] = PAIRS
) -> list[str]:
    """A warning for every two splits that share texts: a score on such rows is too good."""
    keys = {split: _keys(table, texts) for split, table in tables.items()}
    notes = []
    for seen, judged in pairs:
        known = set(keys[seen])
        count = sum(key in known for key in keys[judged])
        if count:
            share = count / len(keys[judged])
            notes.append(
                f"Warning: {count:,} of {len(keys[judged]):,} {judged} rows ({share:.1%}) have the same text as "
                f"a {seen} row; scores on them are too good."
            )
    return notes
