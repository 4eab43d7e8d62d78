from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopeft.evidence import error_rate
from autopeft.evidence.calibration import FALSE_BETTER, SEARCHES

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "verdict_error_rate.json"


def test_the_table_is_what_was_simulated() -> None:
    measured = json.loads(RESULTS.read_text())
    assert measured["searches"] == SEARCHES
    assert measured["false_better"] == {f"{rows} rows, {seeds} seeds": n for (rows, seeds), n in FALSE_BETTER.items()}
    # The verdict promises 25 in a thousand, in either direction; a thousand searches show 40 when it is 25 by chance.
    assert max(FALSE_BETTER.values()) <= 40


@pytest.mark.parametrize(
    ("rows", "seeds", "found"),
    [(872, 3, (872, 3)), (900, 4, (872, 3)), (100_000, 9, (3100, 5)), (1, 2, (200, 2)), (1700, 5, (3100, 5))],
)
def test_the_nearest_rows_and_no_more_seeds(rows: int, seeds: int, found: tuple[int, int]) -> None:
    rate = error_rate(rows, seeds)
    assert rate is not None
    assert (rate.rows, rate.seeds) == found
    assert rate.wrong == FALSE_BETTER[found]
    assert error_rate(rows, 1) is None
    assert error_rate(0, 3) is None
