"""What a language model could do before it was adapted, and can after: how likely it finds text that it was given.

Answers are what was trained, so that they say nothing of it; the prompts of held-out rows are text that the base models
as well as any, and no loss was on them. An encoder has no such measure here: its own task is not part of a task's data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from autopeft.data.encoded import EncodedSplit
from autopeft.trial.clock import JobClock
from autopeft.trial.evaluate import outputs, subset
from autopeft.trial.setup import WorkSetup

PROMPT_ROWS = 64
LEAST_ROWS = 8


def prompts_of(split: EncodedSplit) -> EncodedSplit:
    """The prompts of a language model's rows as rows of their own, every token but the first to be predicted.

    Prompts of one token are left out.

    Raises:
        ValueError: The rows have no prompts.
    """
    if split.answer_from is None:
        raise ValueError("only language-model rows have prompts")
    kept = np.flatnonzero(split.answer_from > 1)
    lengths = split.answer_from[kept].astype(np.int64)
    pieces = [
        split.input_ids[start : start + length] for start, length in zip(split.offsets[kept], lengths, strict=True)
    ]
    types = split.token_types
    return replace(
        split,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        input_ids=np.concatenate(pieces) if pieces else split.input_ids[:0],
        token_types=None
        if types is None
        else np.concatenate(
            [types[s : s + n] for s, n in zip(split.offsets[kept], lengths, strict=True)] or [types[:0]]
        ),
        answer_from=np.ones(len(kept), dtype=np.int32),
        references=None,
    )


def ability(
    model: nn.Module,
    bare: nn.Module,
    split: EncodedSplit,
    setup: WorkSetup,
    device: torch.device,
    clock: JobClock | None = None,
) -> dict[str, Any] | None:
    """Mean log-likelihood of a prompt's token, by the bare base and by the adapted model.

    Args:
        model: The adapted model.
        bare: The base without any part.
        split: Held-out rows.
        setup: Kind and precision.
        device: Where the models are.
        clock: The job's clock.

    Returns:
        ``before``, ``after``, ``low`` and ``high`` (95 % of the difference after - before, over rows) and ``rows``;
        None with too few prompts.

    Raises:
        TrialFailure: ``timeout`` past the clock's limit.
    """
    prompts = prompts_of(split)
    rows = subset(prompts, PROMPT_ROWS)
    if len(rows) < LEAST_ROWS:
        return None
    before, after = (
        outputs(one, prompts, setup, device, rows=rows, clock=clock)["log_likelihood"].astype(float)
        for one in (bare, model)
    )
    change = after - before
    half = 1.96 * float(change.std(ddof=1)) / len(rows) ** 0.5
    mean = float(change.mean())
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "low": mean - half,
        "high": mean + half,
        "rows": len(rows),
    }
