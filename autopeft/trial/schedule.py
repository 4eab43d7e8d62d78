"""The learning-rate schedule, in rows, so that trials with different batch sizes are alike."""

from __future__ import annotations


def factor(rows: int, *, warmup_rows: int, rows_to: int, cooldown_rows: int) -> float:
    """What the peak rates are multiplied with for the step that begins after `rows` rows.

    A linear rise, a constant stretch, and a linear fall that exists only in a final rung: rungs below it then compare
    (Hägele et al. 2024, arXiv 2405.18392).

    Args:
        rows: Rows seen before the step.
        warmup_rows: Length of the rise.
        rows_to: Where training ends.
        cooldown_rows: Length of the fall before `rows_to`; 0 for none.
    """
    rise = min(1.0, (rows + 1) / warmup_rows) if warmup_rows > 0 else 1.0
    left = rows_to - rows
    fall = left / cooldown_rows if 0 < left < cooldown_rows else 1.0
    return rise * fall
