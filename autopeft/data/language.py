"""Prompts and answers of a language model as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SENTINEL = "autopeft-sentinel"


@dataclass(frozen=True, slots=True)
class Rendered:
    """How prompts and answers are written for one tokenizer.

    Attributes:
        tokenizer: A `transformers` tokenizer.
        chat: Whether the tokenizer's chat template is used.
        tail: Tokens that end an answer.
        note: One sentence for the user.
    """

    tokenizer: Any
    chat: bool
    tail: tuple[int, ...]
    note: str


def renderer(tokenizer: Any, *, chat: bool | None = None) -> Rendered:
    """How prompts and answers are written.

    Args:
        tokenizer: A `transformers` tokenizer.
        chat: Whether to use its chat template; None uses it where there is one that takes a user turn.
    """
    from jinja2.exceptions import TemplateError

    end = tokenizer.eos_token_id
    stop = () if end is None else (int(end),)
    if chat is False or not tokenizer.chat_template:
        return Rendered(tokenizer, False, stop, "Prompt and answer are joined by a line break (no chat template).")
    turns = [{"role": "user", "content": _SENTINEL}, {"role": "assistant", "content": _SENTINEL}]
    try:
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
        tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        if chat:
            raise
        note = f"The chat template is not used: it refuses a user and an assistant turn ({error})."
        return Rendered(tokenizer, False, stop, note)
    # What the template writes after an answer is learned as well: it is what ends a turn when the model is used.
    _, _, after = whole.rpartition(_SENTINEL)
    tail = tuple(map(int, tokenizer(after.strip(), add_special_tokens=False)["input_ids"])) if after.strip() else ()
    if stop and tail[-1:] != stop:
        tail += stop
    return Rendered(tokenizer, True, tail, "Prompt and answer are the turns of the tokenizer's chat template.")


def encode_prompts(rendered: Rendered, prompts: Sequence[str]) -> list[list[int]]:
    """Tokens of each prompt, up to where the answer begins."""
    tokenizer = rendered.tokenizer
    if not prompts:
        return []
    if rendered.chat:
        texts = [
            str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
            )
            for prompt in prompts
        ]
        return _tokens(tokenizer, texts, special=False)
    rows = _tokens(tokenizer, [prompt + "\n" for prompt in prompts], special=True)
    end = tokenizer.eos_token_id
    # A tokenizer that ends every text would end the sequence before the answer.
    if end is not None and end != tokenizer.bos_token_id:
        rows = [row[:-1] if row and row[-1] == end else row for row in rows]
    return rows


def encode_answers(rendered: Rendered, answers: Sequence[str]) -> list[list[int]]:
    """Tokens of each answer, its end included."""
    if not answers:
        return []
    return [[*row, *rendered.tail] for row in _tokens(rendered.tokenizer, answers, special=False)]


def _tokens(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    encoded = tokenizer(
        list(texts), add_special_tokens=special, padding=False, return_attention_mask=False, verbose=False
    )
    return [list(row) for row in encoded["input_ids"]]
