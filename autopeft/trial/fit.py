"""Whether a forward pass of a model may begin at kept hidden states: both ways are run on a few rows and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autopeft.compose.base import Carrier
from autopeft.compose.lookup import block_stack, passing, run_base, states_after
from autopeft.data.batches import pad
from autopeft.data.encoded import Array
from autopeft.space.modules import ModuleMap
from autopeft.trial.evaluate import autocast, tensors
from autopeft.trial.setup import WorkSetup
from autopeft.trial.states import classes_of, states_of

__all__ = ["Fit", "fit_of"]

TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference between the ways, relative to the largest value: what tells rounding from another function."""
CHECKED_ROWS = 2
"""Of the shortest rows, and of the longest."""
UNFIT = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model that passes more than hidden states up can raise."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What is known of a base at one of its blocks.

    Attributes:
        reason: Why its hidden states cannot be kept, or None.
        stack: Name of the list of its blocks.
        width: Of the states.
        dtype: Of the states.
    """

    reason: str | None
    stack: str = ""
    width: int = 0
    dtype: torch.dtype = torch.float32


@torch.inference_mode()
def fit_of(setup: WorkSetup, device: torch.device, carrier: Carrier, modules: ModuleMap, layer: int) -> Fit:
    """Compare whole passes of the bare base with such as begin after some of its blocks.

    Args:
        setup: Data and precision.
        device: Where the base is.
        carrier: The base.
        modules: Its module map.
        layer: After how many blocks.
    """
    stack = block_stack(carrier.model, modules)
    if stack is None:
        return Fit("the blocks of this model are not one list")
    split = setup.data.splits["train"]
    classes = classes_of(split)
    groups = [np.flatnonzero(classes == kind)[:CHECKED_ROWS] for kind in (classes.min(), classes.max())]
    inputs = tensors(pad(split, np.concatenate(groups), setup.data.pad_token), device)
    tokens = inputs["attention_mask"].bool()
    try:
        if not all(_steady(setup, device, carrier, stack, group) for group in groups):
            return Fit("on this device hidden states depend on the place of a row in its batch")
        with autocast(setup, device):
            parts = [
                states_after(carrier, stack, layer, tensors(pad(split, group, setup.data.pad_token), device))
                for group in groups
            ]
            states = _together(parts, tokens)
            plain = run_base(carrier, inputs)[tokens].float()
            with passing(list(carrier.model.get_submodule(stack).children())[:layer], lambda: states):
                looked_up = run_base(carrier, inputs)[tokens].float()
    except UNFIT as error:
        return Fit(f"the blocks of this model pass more than hidden states up ({type(error).__name__})")
    if not (plain - looked_up).abs().max() <= TOLERANCES[setup.precision] * plain.abs().max():
        return Fit("the blocks of this model depend on more than the hidden states below them")
    return Fit(None, stack, states.shape[-1], states.dtype)


def _steady(setup: WorkSetup, device: torch.device, carrier: Carrier, stack: str, rows: Array) -> bool:
    """Whether rows have the same states, bit for bit, in another order: one block tells of all."""
    split = setup.data.splits["train"]
    one = states_of(setup, device, carrier, stack, 1, split, rows)
    other = states_of(setup, device, carrier, stack, 1, split, rows[::-1])
    lengths = split.lengths[rows].tolist()
    return all(torch.equal(a[:n], b[:n]) for a, b, n in zip(one, other.flip(0), lengths, strict=True))


def _together(parts: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """States of groups of rows as one batch, 0 where there is padding: `[batch, length, width]`."""
    states = parts[0].new_zeros(*tokens.shape, parts[0].shape[-1])
    for place, row in enumerate(row for part in parts for row in part):
        states[place, : len(row)] = row
    states[~tokens] = 0
    return states
