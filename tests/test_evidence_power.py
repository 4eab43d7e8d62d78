from __future__ import annotations

import numpy as np
import pytest

from autopeft.evidence import compare, detectable


def test_by_rows_alone_it_is_the_textbook_number() -> None:
    found = detectable(872, 3)
    assert found is not None
    # (1.96 + 0.84) standard deviations of a paired difference: 2.5 points.
    assert found.by_rows_alone == pytest.approx((1.95996 + 0.84162) * (0.07 / 872) ** 0.5, rel=1e-4)
    assert 0.024 < found.by_rows_alone < 0.026 < found.difference < 0.035


def test_more_rows_and_more_seeds_show_more() -> None:
    few, rows, seeds = detectable(500, 2), detectable(5000, 2), detectable(500, 5)
    assert few is not None
    assert rows is not None
    assert seeds is not None
    assert rows.difference < few.difference
    assert seeds.difference < few.difference
    assert detectable(500, 1) is None


def test_rows_for_half_show_half() -> None:
    found = detectable(400, 5, seed_spread=0.002)
    assert found is not None
    assert found.rows_for_half is not None
    more, less = (
        detectable(found.rows_for_half, 5, seed_spread=0.002),
        detectable(found.rows_for_half - 1, 5, seed_spread=0.002),
    )
    assert more is not None
    assert less is not None
    assert more.difference <= found.difference / 2 < less.difference
    noisy = detectable(5000, 2, seed_spread=0.02)
    assert noisy is not None
    assert noisy.rows_for_half is None


@pytest.mark.parametrize("rows", [300, 2000])
def test_the_verdict_shows_it_as_often_as_is_said(rows: int) -> None:
    """In simulated searches with that difference, disagreement and seed spread."""
    rng = np.random.default_rng(5)
    seeds, disagreement, spread = 3, 0.07, 0.005
    found = detectable(rows, seeds, disagreement=disagreement, seed_spread=spread)
    assert found is not None
    searches, better = 400, 0
    for _ in range(searches):
        # Of the rows on which they differ, so many are won that the difference comes out; each seed shifts a score.
        draw = rng.random(rows)
        won, lost = (disagreement + found.difference) / 2, (disagreement - found.difference) / 2
        ours, theirs = draw < 0.8 + won, (draw < 0.8) | (draw > 1 - lost)

        def seeded(right: np.ndarray) -> dict[str, np.ndarray]:
            flips = round(abs(shift := rng.normal(0, spread)) * rows)
            changed = right.copy()
            pool = np.flatnonzero(~right if shift > 0 else right)
            changed[rng.choice(pool, min(flips, len(pool)), replace=False)] = shift > 0
            return {"prediction": changed.astype(int), "label": np.ones(rows, int)}

        runs = [[seeded(arm) for _ in range(seeds)] for arm in (ours, theirs)]
        better += compare("accuracy", *runs, costs=(1, 2)).name == "better"
    assert 0.72 < better / searches < 0.9


@pytest.mark.parametrize("values", [{"rows": 0}, {"disagreement": 0.0}, {"disagreement": 1.5}, {"seed_spread": -1.0}])
def test_senseless_questions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no power"):
        detectable(**{"rows": 100, "seeds": 3, **values})  # type: ignore[arg-type]
