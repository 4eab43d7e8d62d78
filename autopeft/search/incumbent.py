"""The adapter in use today: an adapter that cannot be compared is told before anything runs."""

from __future__ import annotations

from autopeft.compose.base import SharedBase, attach
from autopeft.compose.stock import is_stock_folder, load_stock, stock_head, stock_weights
from autopeft.compose.store import describe
from autopeft.data.read import RawData
from autopeft.errors import InputError, Problem

CLASSES = {"regression": 1, "causal_lm": 0}


def check_incumbent(folder: str, base: SharedBase, raw: RawData) -> list[str]:
    """Whether an adapter, of autopeft or of plain peft, can be evaluated on this task.

    Returns:
        What the user should know of it, as sentences.

    Raises:
        InputError: It cannot: all reasons at once.
    """
    try:
        if is_stock_folder(folder):
            return _check_stock(folder, base, raw)
        _check_own(folder, base, raw)
    except InputError as error:
        # The reasons are about an adapter; the user has given an incumbent.
        raise InputError([Problem("incumbent", p.value, p.rule, p.next_step) for p in error.problems]) from error
    return []


def weights_of(folder: str) -> str:
    """A checksum of an adapter's weights."""
    return stock_weights(folder) if is_stock_folder(folder) else str(describe(folder)["weights"])


def _check_own(folder: str, base: SharedBase, raw: RawData) -> None:
    about = describe(folder)
    identity, labels = about["identity"], about["meta"].get("text", {}).get("label_names", [])
    wrong = {
        "another base model": identity["content_hash"] != base.identity.content_hash,
        f"the task kind {about['kind']}, not {raw.kind}": about["kind"] != raw.kind,
        f"other classes ({', '.join(labels[:5])}, ...)": list(labels) != list(raw.label_names),
    }
    problems = [
        Problem("incumbent", folder, f"belongs to {what}", "Give an adapter for this task, or none.")
        for what, is_so in wrong.items()
        if is_so
    ]
    if problems:
        raise InputError(problems)


def _check_stock(folder: str, base: SharedBase, raw: RawData) -> list[str]:
    labels = CLASSES.get(raw.kind, len(raw.label_names))
    load_stock(attach(base, head=stock_head(raw.kind), labels=labels), folder)
    if raw.kind != "sequence_classification":
        return []
    order = ", ".join(list(raw.label_names)[:5]) + (", ..." if labels > 5 else "")
    return [f"the incumbent is an adapter of plain peft: its outputs are taken to be in the order {order}"]
