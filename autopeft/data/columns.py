"""What the columns of a table mean: the task kind, texts, label, prompt and response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from autopeft.data.frames import Frame, is_text
from autopeft.errors import InputError, Problem
from autopeft.spec import KINDS, METRICS, Task

SINGLES = ("text", "sentence", "review", "utterance", "document", "content", "comment", "message", "tweet")
"""Names of a column that holds the one text of a row."""
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("question1", "question2"),
)
"""Names of columns that hold the two texts of a row."""
LABELS = ("label", "labels", "class", "category", "intent", "sentiment", "target", "score", "rating")
"""Names of a column that holds a class or a target."""
TARGETS = ("score", "rating")
"""Those of them that mean a number even when every value is whole."""
DIALOGUES = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("input", "output"),
    ("question", "answer"),
)
"""Names of columns that hold what is given to a language model, and what it shall produce."""
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?\Z|[+-]?(nan|inf|infinity)\Z", re.IGNORECASE)
_INTEGER = re.compile(r"(0|-?[1-9]\d{0,17})\Z")


@dataclass(frozen=True, slots=True)
class Columns:
    """The meaning of the columns.

    Attributes:
        kind: The task kind.
        metric: What decides.
        text_columns: One or two; empty for ``causal_lm``.
        label_column: None for ``causal_lm``.
        prompt_column: For ``causal_lm``.
        response_column: For ``causal_lm``.
        notes: What was inferred, one sentence each.
    """

    kind: str
    metric: str
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All columns that must hold text."""
        return self.text_columns or tuple(name for name in (self.prompt_column, self.response_column) if name)

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are used."""
        return (*self.texts, self.label_column) if self.label_column else self.texts


@dataclass
class _Reading:
    """The problems and notes that gather while columns are inferred."""

    task: Task
    frame: Frame
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(self.frame.table.column_names)

    def describe(self) -> str:
        listed = [f"{name} ({self.frame.table.schema.field(name).type})" for name in self.names]
        listed += [f"{name} ({kind})" for name, kind in self.frame.unusable.items()]
        return ", ".join(listed) or "no columns"

    def by_name(self, wanted: str) -> str | None:
        return next((name for name in self.names if name.lower() == wanted), None)

    def refuse(self, name: str, value: object, rule: str, next_step: str) -> None:
        self.problems.append(Problem(f"task.{name}", value, rule, next_step))


def infer(task: Task, frame: Frame) -> Columns:
    """The meaning of the columns: what the task names, and for the rest the usual names.

    Args:
        task: What the user said.
        frame: The training rows.

    Raises:
        InputError: When a named column does not exist, or several readings are possible: with all columns, and the
            options to name.
    """
    reading = _Reading(task, frame)
    _check_named(reading)
    if reading.problems:
        raise InputError(reading.problems)
    columns = _language(reading) if _is_language(reading) else _labelled(reading)
    if columns is None or reading.problems:
        raise InputError(reading.problems)
    return columns


def _check_named(reading: _Reading) -> None:
    task = reading.task
    if task.kind is not None and task.kind not in KINDS:
        reading.refuse("kind", task.kind, "is not a task kind", f"Use one of {', '.join(KINDS)}")
    named: list[tuple[str, str | None]] = [("text_columns", name) for name in task.text_columns]
    named += [(key, getattr(task, key)) for key in ("label_column", "prompt_column", "response_column")]
    for key, name in named:
        if name is None or name in reading.names:
            continue
        if name in reading.frame.unusable:
            rule = f"the column holds {reading.frame.unusable[name]}, not text or numbers"
        else:
            rule = f"{reading.frame.place} has no such column; it has {reading.describe()}"
        reading.refuse(key, name, rule, "Name a column that exists")
    if len(task.text_columns) > 2:
        reading.refuse("text_columns", task.text_columns, "at most two columns can be read together", "Name one or two")
    if len(set(task.text_columns)) != len(task.text_columns):
        reading.refuse("text_columns", task.text_columns, "names a column twice", "Name each once")
    if task.label_column is not None and task.label_column in task.text_columns:
        reading.refuse("label_column", task.label_column, "is also a text column", "Name another")
    if task.prompt_column is not None and task.prompt_column == task.response_column:
        reading.refuse("response_column", task.response_column, "is also the prompt column", "Name another")
    if (task.prompt_column or task.response_column) and (task.text_columns or task.label_column):
        reading.refuse(
            "prompt_column",
            task.prompt_column or task.response_column,
            "prompt and response are for causal_lm; text and label columns are for the other kinds",
            "Name one sort of columns",
        )


def _is_language(reading: _Reading) -> bool:
    task = reading.task
    if task.kind is not None:
        return task.kind == "causal_lm"
    if task.prompt_column or task.response_column:
        return True
    if task.text_columns or task.label_column:
        return False
    labelled = bool(_label_options(reading)) and bool(_text_options(reading))
    dialogue = bool(_dialogue_options(reading))
    if labelled and dialogue:
        reading.refuse(
            "kind",
            None,
            f"the columns fit a classification and a language model: {reading.describe()}",
            "Name kind: causal_lm, or kind: sequence_classification",
        )
        raise InputError(reading.problems)
    return dialogue


def _options(reading: _Reading, known: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    found = [tuple(reading.by_name(name) for name in group) for group in known]
    return [tuple(name for name in group if name) for group in found if all(group)]


def _text_options(reading: _Reading) -> list[tuple[str, ...]]:
    singles = _options(reading, [(name,) for name in SINGLES])
    pairs = _options(reading, PAIRS)
    inside = {name for pair in pairs for name in pair}
    return pairs + [single for single in singles if single[0] not in inside]


def _label_options(reading: _Reading) -> list[str]:
    taken = {*reading.task.text_columns}
    return [group[0] for group in _options(reading, [(name,) for name in LABELS]) if group[0] not in taken]


def _dialogue_options(reading: _Reading) -> list[tuple[str, ...]]:
    task = reading.task
    pairs = _options(reading, DIALOGUES)
    if task.prompt_column:
        pairs = [pair for pair in pairs if pair[0] == task.prompt_column]
    if task.response_column:
        pairs = [pair for pair in pairs if pair[1] == task.response_column]
    return pairs


def _language(reading: _Reading) -> Columns | None:
    task = reading.task
    prompt, response = task.prompt_column, task.response_column
    if prompt is None or response is None:
        options = _dialogue_options(reading)
        texts = [name for name in reading.names if is_text(reading.frame.table.schema.field(name).type)]
        rest = [name for name in texts if name not in (prompt, response)]
        if len(options) == 1:
            prompt, response = options[0]
        elif len(options) > 1:
            shown = " or ".join(f"{a} and {b}" for a, b in options)
            reading.refuse("prompt_column", None, f"several readings are possible: {shown}", "Name both columns")
        elif (prompt or response) and len(rest) == 1:
            prompt, response = prompt or rest[0], response or rest[0]
        else:
            key = "response_column" if prompt else "prompt_column"
            reading.refuse(
                key,
                None,
                f"cannot be told from the columns: {reading.describe()}",
                "Name prompt_column and response_column",
            )
        if prompt and response:
            reading.notes.append(f"Prompt column {prompt!r}, response column {response!r} (inferred).")
    metric = _metric(reading, "causal_lm")
    if reading.problems or prompt is None or response is None:
        return None
    if task.kind is None:
        reading.notes.append("Task kind causal_lm (from the columns).")
    return Columns("causal_lm", metric, prompt_column=prompt, response_column=response, notes=tuple(reading.notes))


def _labelled(reading: _Reading) -> Columns | None:
    label = _label(reading)
    texts = _texts(reading, label)
    kind = reading.task.kind
    if kind is None and label is not None:
        kind = _kind_of(reading, label)
    metric = _metric(reading, kind) if kind else ""
    if reading.problems or label is None or kind is None:
        return None
    return Columns(kind, metric, text_columns=texts, label_column=label, notes=tuple(reading.notes))


def _label(reading: _Reading) -> str | None:
    if reading.task.label_column is not None:
        return reading.task.label_column
    options = _label_options(reading)
    if reading.task.kind == "regression" and len(options) > 1:
        options = [name for name in options if name.lower() in TARGETS] or options
    rest = [name for name in reading.names if name not in reading.task.text_columns]
    if len(options) == 1:
        reading.notes.append(f"Label column {options[0]!r} (inferred).")
        return options[0]
    if len(options) > 1:
        reading.refuse(
            "label_column", None, f"several columns could be the label: {', '.join(options)}", "Name one of them"
        )
    elif reading.task.text_columns and len(rest) == 1:
        reading.notes.append(f"Label column {rest[0]!r} (the only other column).")
        return rest[0]
    else:
        reading.refuse(
            "label_column", None, f"cannot be told from the columns: {reading.describe()}", "Name the label column"
        )
    return None


def _texts(reading: _Reading, label: str | None) -> tuple[str, ...]:
    if reading.task.text_columns:
        return reading.task.text_columns
    options = [option for option in _text_options(reading) if label not in option]
    schema = reading.frame.table.schema
    rest = [name for name in reading.names if name != label and is_text(schema.field(name).type)]
    if len(options) == 1:
        shown = " and ".join(map(repr, options[0]))
        reading.notes.append(
            f"Text column {shown} (inferred)." if len(options[0]) == 1 else f"Text pair {shown} (inferred)."
        )
        return options[0]
    if len(options) > 1:
        shown = " or ".join("+".join(option) for option in options)
        reading.refuse("text_columns", None, f"several readings are possible: {shown}", "Name one or two columns")
    elif label is not None and len(rest) == 1:
        reading.notes.append(f"Text column {rest[0]!r} (the only column of text).")
        return (rest[0],)
    else:
        reading.refuse(
            "text_columns",
            None,
            f"cannot be told from the columns: {reading.describe()}",
            "Name one or two text columns",
        )
    return ()


def _kind_of(reading: _Reading, label: str) -> str | None:
    values = numbers(reading.frame, label)
    if label in reading.frame.class_names or is_text(values.type) or pa.types.is_boolean(values.type):
        kind, why = "sequence_classification", f"{label!r} holds class names"
    elif label.lower() in TARGETS:
        kind, why = "regression", f"a column named {label!r} is a number"
    else:
        distinct = len(pc.unique(values.drop_null()))
        whole = pa.types.is_integer(values.type) or bool(pc.all(pc.equal(pc.round(values), values)).as_py())
        if not whole:
            kind, why = "regression", f"{label!r} holds fractions"
        elif distinct > max(50, len(values) // 5):
            reading.refuse(
                "kind",
                None,
                f"{label!r} has {distinct} distinct whole numbers: classes or a target?",
                "Name kind: sequence_classification, or kind: regression",
            )
            return None
        else:
            kind, why = "sequence_classification", f"{label!r} holds {distinct} distinct whole numbers"
    reading.notes.append(f"Task kind {kind} ({why}).")
    return kind


def _metric(reading: _Reading, kind: str) -> str:
    metric = reading.task.metric
    if metric is None:
        return METRICS[kind][0]
    if metric not in METRICS[kind]:
        reading.refuse("metric", metric, f"does not judge {kind}", f"Use one of {', '.join(METRICS[kind])}")
    return metric


def numbers(frame: Frame, name: str) -> pa.ChunkedArray:
    """A column as numbers when every value is one; otherwise as it is.

    Only sources without types are converted: there, empty fields become null, and a column of canonical integers
    becomes int64, a column of other numbers float64. Codes with leading zeros stay text.
    """
    column = frame.table.column(name)
    if pa.types.is_null(column.type):
        return column
    if frame.typed or not is_text(column.type):
        return column
    stripped = pc.utf8_trim_whitespace(column)
    column = pc.if_else(pc.equal(stripped, ""), pa.scalar(None, column.type), column)
    distinct = [value for value in pc.unique(stripped).to_pylist() if value]
    if distinct and all(_INTEGER.match(value) for value in distinct):
        return pc.if_else(pc.is_null(column), pa.scalar(None, column.type), stripped).cast(pa.int64())
    if distinct and all(_NUMBER.match(value) for value in distinct):
        return pc.if_else(pc.is_null(column), pa.scalar(None, column.type), stripped).cast(pa.float64())
    return column
