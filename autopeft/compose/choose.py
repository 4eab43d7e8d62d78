"""Places that are chosen when a trial begins: single weights, tokens, the examples that a prompt begins as.

A stored adapter holds what was chosen, so nothing is chosen again when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.compose.host import ADAPTER, begin_as_examples, hosted_parts
from autopeft.compose.layers.sparse import ChoosingPart, SparsePart, TokensPart
from autopeft.methods import METHODS

__all__ = ["TrainingData", "choose"]


class TrainingData(Protocol):
    """What a build may ask of the training data; each question is asked at most once for a build."""

    def fisher(self, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Fisher information of frozen weights by module name, float32, each of the shape that the weight has."""

    def frequent_tokens(self, count: int) -> torch.Tensor:
        """The tokens that are most frequent, int64 `[count]`."""

    def examples(self, count: int) -> torch.Tensor:
        """The tokens of whole examples one after the other, cut off at a length: int64 `[count]`."""


def choose(model: PeftModel, data: TrainingData | None, adapter: str = ADAPTER) -> None:
    """Choose the places of all parts that have such; on the meta device there is nothing to choose by.

    Args:
        model: Just built.
        data: None where stored places are loaded afterwards, or where they do not matter; what would be chosen by the
            data then stays where it was made.
        adapter: Whose parts. Those whose places were chosen or read back before are passed over.

    Raises:
        ValueError: Single weights are to be chosen in a quantised base.
    """
    parts = [held for held in hosted_parts(model, adapter) if isinstance(held[2], ChoosingPart)]
    parts = [held for held in parts if not held[2].settled]
    for name, method, part, module in parts:
        if isinstance(part, SparsePart) and not module.weight.is_floating_point():
            raise ValueError(f"{method} chooses among the weights of {name}, which are quantised")
        # Also where the choice does not matter.
        part.settled = True
    parts = [held for held in parts if not held[-1].weight.is_meta]
    by_fisher = [name for name, method, _, _ in parts if METHODS[method].chooses == "fisher"]
    fisher = data.fisher(by_fisher) if data is not None and by_fisher else {}
    for name, method, part, module in parts:
        if isinstance(part, TokensPart):
            if data is not None:
                part.settle(data.frequent_tokens(len(part.positions)))
        elif isinstance(part, SparsePart):
            if METHODS[method].chooses == "magnitude":
                part.settle_by(-_stored_by_row(module, module.weight.detach().abs()))
            elif name in fisher:
                part.settle_by(_stored_by_row(module, fisher[name]))
    whole = getattr(model, "autopeft_whole", None)
    if data is not None and whole is not None and METHODS[whole].chooses == "examples":
        begin_as_examples(model, data.examples(model.peft_config[ADAPTER].num_virtual_tokens))


def _stored_by_row(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Values of the weights as `[out, in]`."""
    return values.T if isinstance(module, Conv1D) else values
