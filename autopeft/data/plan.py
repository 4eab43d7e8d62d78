"""How text becomes tokens: the part of a task's data that is stored with its winner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autopeft.errors import DamagedFile, Problem
from autopeft.spec import KINDS


@dataclass(frozen=True, slots=True)
class TextPlan:
    """All that is needed to encode new rows exactly as the training rows were.

    Attributes:
        kind: The task kind.
        text_columns: One or two; empty for ``causal_lm``.
        prompt_column: For ``causal_lm``; else None.
        max_length: Longest row in tokens.
        label_names: Class names in the order of their numbers; empty for other kinds.
        chat: Whether prompts go through the tokenizer's chat template.
    """

    kind: str
    text_columns: tuple[str, ...]
    prompt_column: str | None
    max_length: int
    label_names: tuple[str, ...] = ()
    chat: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return self.text_columns or ((self.prompt_column,) if self.prompt_column else ())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        values["text_columns"] = list(self.text_columns)
        values["label_names"] = list(self.label_names)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextPlan:
        """The plan from what `to_dict` gave.

        Raises:
            DamagedFile: With every value that cannot be.
        """
        problems: list[Problem] = []

        def take(name: str, fits: bool) -> Any:
            if not fits:
                problems.append(
                    Problem(
                        f"text_plan.{name}", values.get(name), "is not what was saved", "Use an unchanged run folder"
                    )
                )
            return values.get(name)

        columns, names = values.get("text_columns"), values.get("label_names", [])
        prompt, length = values.get("prompt_column"), values.get("max_length")
        take("kind", values.get("kind") in KINDS)
        take("text_columns", _are_names(columns) and len(columns or ()) <= 2)
        take("prompt_column", prompt is None or isinstance(prompt, str))
        take("max_length", type(length) is int and length > 0)
        take("label_names", _are_names(names))
        take("chat", isinstance(values.get("chat", False), bool))
        if not problems and bool(columns) == bool(prompt):
            take("text_columns", False)
        if problems:
            raise DamagedFile(problems)
        return cls(
            kind=str(values["kind"]),
            text_columns=tuple(columns or ()),
            prompt_column=prompt,
            max_length=int(values["max_length"]),
            label_names=tuple(names),
            chat=bool(values.get("chat", False)),
        )


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
