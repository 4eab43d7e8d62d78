"""The task: base model, labelled data, kind, metric, head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["sequence_classification", "regression", "causal_lm"]
KINDS: tuple[str, ...] = get_args(Kind)
Head = Literal["auto", "stock", "cls", "mean"]
HEADS: tuple[str, ...] = get_args(Head)
Metric = Literal[
    "accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "neg_rmse", "log_likelihood", "exact_match"
]
METRICS: dict[str, tuple[str, ...]] = {
    "sequence_classification": ("accuracy", "f1", "macro_f1", "matthews", "log_likelihood"),
    "regression": ("pearson", "spearman", "neg_rmse"),
    "causal_lm": ("log_likelihood", "exact_match"),
}
"""Task kind -> metrics that it can be judged by; the first is the default. All are better when larger."""


@dataclass(frozen=True)
class Task:
    """What is to be learned, and by which base model.

    Attributes:
        model: A folder, a ``.gguf`` file, or a hub id.
        data: A folder with train/validation/test files, one file, a saved `datasets` folder, a hub id, or from Python a
            `datasets.Dataset`, a `DatasetDict`, a `pandas.DataFrame`, or a mapping of split names to either.
        kind: The task kind; None infers it from the columns.
        text_columns: One column, or two for sentence pairs; empty infers them.
        label_column: Class or target; None infers it.
        prompt_column: For ``causal_lm``: what is given.
        response_column: For ``causal_lm``: what is to be produced.
        metric: What decides; None takes the kind's default.
        max_length: Longest row in tokens; None takes what the data and the model allow.
        revision: Revision of a hub model.
        head: The layers on top; ``auto`` picks by a linear probe among what the target can load.
        name: A label for tracking; None makes one of model and data.
    """

    model: str
    data: Any
    kind: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    metric: str | None = None
    max_length: int | None = None
    revision: str | None = None
    head: str = "auto"
    name: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """A task from plain values; `InputError` names every field that is wrong."""
        from autopeft.spec.parse import parse_task

        return parse_task(values)
