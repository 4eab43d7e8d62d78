"""What could serve the result of a search, said before it runs."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.methods import METHODS
from autopeft.space.bound import BoundSpace
from autopeft.space.placement import admits

SERVED = ("vllm", "peft", "merged")
"""Targets that something else than this package serves."""


def serving_warnings(bound: BoundSpace, *, kind: str, target: str, heads: Sequence[str]) -> list[str]:
    """What a user should know about serving before a search is paid for; empty where the target settles it.

    Args:
        bound: The space on the model, under the target and the limits.
        kind: The task kind.
        target: What must load the winner.
        heads: Heads to choose from.
    """
    if target != "any":
        return []
    if kind != "causal_lm":
        own = [head for head in heads if head in ("mean", "cls")]
        if not own:
            return []
        told = "may be" if len(own) < len(heads) else "is"
        step = (
            "--target peft keeps to the stock head"
            if len(own) < len(heads)
            else "use --head stock --target peft for plain peft"
        )
        return [f"The head {told} our own ({' or '.join(own)}), which only autopeft.load serves; {step}."]
    able = [name for name in SERVED if any(admits(name, [method]) for method in bound.methods)]
    if not able:
        return [
            f"Nothing could serve the result: no method of this space ({', '.join(bound.methods)}) can be loaded by "
            "vLLM or plain peft, or be merged; only autopeft.load reads it. Use a space with LoRA, for example "
            "--space lora --target vllm."
        ]
    alone = [name for name in bound.methods if not METHODS[name].targets]
    if not alone:
        return []
    ways = " or ".join(f"--target {name}" for name in able)
    return [f"The result may hold {_listed(alone)}, which only autopeft.load serves; {ways} rules that out."]


def _listed(names: Sequence[str], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
