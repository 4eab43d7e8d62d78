"""One optimizer step, as it is trained and as it is predicted.

Training and the memory prediction call the same functions here, so that a prediction cannot drift from what runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopeft.compose.lookup import Entry
from autopeft.data.encoded import Array, Batch
from autopeft.errors import TrialFailure
from autopeft.space.configuration import Training

__all__ = [
    "CLIP_NORM",
    "StepTensors",
    "answer_logits",
    "apply_gradients",
    "build_optimizer",
    "compute_gradients",
    "compute_loss",
    "loss_of",
    "micro_batches",
    "step_tensors",
    "train_step",
]

CLIP_NORM = 1.0
"""Largest norm of all gradients together."""

Mark = Callable[[str], None]


def _unmarked(phase: str) -> None:
    """No one counts."""


@dataclass(frozen=True, slots=True)
class StepTensors:
    """A padded batch on a device.

    Attributes:
        input_ids: int64 `[batch, length]`.
        attention_mask: int64 `[batch, length]`.
        token_types: int64 `[batch, length]`, or None.
        labels: int64 `[batch]` classes, float32 `[batch]` targets, or for ``causal_lm`` int64 `[answers]`: the tokens
            to be predicted.
        positions: For ``causal_lm``: int64 `[answers]`, where in the flattened batch each of them is predicted (one
            token before its own place); None otherwise.
        entry: Where the forward pass begins, with what it looks up there; None for a whole one.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_types: Tensor | None
    labels: Tensor
    positions: Tensor | None = None
    entry: Entry | None = None

    def all(self) -> tuple[Tensor, ...]:
        """The tensors that there are."""
        every = (self.input_ids, self.attention_mask, self.token_types, self.labels, self.positions)
        return tuple(tensor for tensor in every if tensor is not None)

    def to(self, device: torch.device) -> StepTensors:
        """The same on a device."""
        return StepTensors(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            None if self.token_types is None else self.token_types.to(device),
            self.labels.to(device),
            None if self.positions is None else self.positions.to(device),
        )


def step_tensors(batch: Batch, kind: str, device: str | torch.device = "cpu") -> StepTensors:
    """A batch as tensors.

    The answer positions of a language model are found here, in numpy, because selecting them on the device would wait
    for it.

    Args:
        batch: Rows padded to one length.
        kind: The task kind.
        device: Where the tensors go.
    """

    def tensor(array: np.ndarray[Any, Any], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype)

    token_types = None if batch.token_types is None else tensor(batch.token_types)
    ids, mask = tensor(batch.input_ids), tensor(batch.attention_mask)
    if kind == "regression":
        return StepTensors(ids, mask, token_types, tensor(batch.labels, torch.float32))
    if kind != "causal_lm":
        return StepTensors(ids, mask, token_types, tensor(batch.labels))
    rows, places = np.nonzero(batch.labels[:, 1:] != -100)
    targets = batch.labels[:, 1:][rows, places]
    return StepTensors(ids, mask, token_types, tensor(targets), tensor(rows * batch.labels.shape[1] + places))


def micro_batches(
    batch: Batch,
    kind: str,
    rows: int,
    device: str | torch.device = "cpu",
    entry: Callable[[Array, int], Entry] | None = None,
) -> list[StepTensors]:
    """A batch as tensors in pieces of some rows, all of its padded length, for `train_step` to add up.

    Args:
        batch: Rows padded to one length.
        kind: The task kind.
        rows: Rows of a piece; the last one may have fewer.
        device: Where the tensors go.
        entry: Row numbers and padded length -> where their forward pass begins; None for whole ones.
    """
    types = batch.token_types
    starts = range(0, len(batch.rows), rows)
    pieces = [
        Batch(
            batch.rows[start : start + rows],
            batch.input_ids[start : start + rows],
            batch.attention_mask[start : start + rows],
            None if types is None else types[start : start + rows],
            batch.labels[start : start + rows],
        )
        for start in starts
    ]
    tensors = [step_tensors(piece, kind, device) for piece in pieces]
    if entry is not None:
        length = batch.input_ids.shape[1]
        tensors = [replace(piece, entry=entry(own.rows, length)) for piece, own in zip(tensors, pieces, strict=True)]
    # A piece without answers has no loss.
    return [piece for piece in tensors if len(piece.labels)] or tensors[:1]


def build_optimizer(groups: Mapping[str, Sequence[nn.Parameter]], training: Training) -> torch.optim.AdamW:
    """AdamW with a learning rate for each method's parts and for the head.

    Every parameter group carries ``peak``, the rate that a schedule scales, and ``name``. There is no weight decay:
    decay pulls multiplicative parts (IA3, norms) towards 0, which switches the base off.

    Args:
        groups: Method name, or ``head``, -> trainable parameters (`AdaptedModel.groups`).
        training: The hyperparameters.
    """
    chosen: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        if parameters:
            rate = training.head_rate if name == "head" else training.rate(name)
            chosen.append({"params": list(parameters), "lr": rate, "peak": rate, "name": name})
    return torch.optim.AdamW(chosen, lr=training.head_rate, weight_decay=0.0, foreach=False, fused=True)


def train_step(
    model: nn.Module,
    tensors: StepTensors | Sequence[StepTensors],
    optimizer: torch.optim.Optimizer,
    kind: str,
    autocast_dtype: torch.dtype | None,
    *,
    mark: Mark = _unmarked,
) -> float:
    """Forward pass, loss, backward pass, clipping, update; the gradients are gone afterwards.

    Args:
        model: Maps `(input_ids, attention_mask, token_type_ids)` to logits, in training mode.
        tensors: One batch, or the pieces of one (`micro_batches`): their gradients are added up.
        optimizer: Holds the trainable parameters.
        kind: The task kind.
        autocast_dtype: Dtype of `torch.autocast` in the forward pass, or None for none.
        mark: Called with ``forward``, ``backward`` and ``optimizer`` as these begin.

    Returns:
        The loss.

    Raises:
        TrialFailure: ``nan`` when the loss or a gradient is not finite; nothing was updated.
    """
    loss, norm = compute_gradients(model, tensors, optimizer, kind, autocast_dtype, mark=mark)
    value, length = float(loss), float(norm)
    if not math.isfinite(value) or not math.isfinite(length):
        optimizer.zero_grad(set_to_none=True)
        raise TrialFailure("nan", f"the loss was {value} and the norm of the gradients {length}")
    apply_gradients(optimizer, mark=mark)
    return value


def compute_gradients(
    model: nn.Module,
    tensors: StepTensors | Sequence[StepTensors],
    optimizer: torch.optim.Optimizer,
    kind: str,
    autocast_dtype: torch.dtype | None,
    *,
    mark: Mark = _unmarked,
) -> tuple[Tensor, Tensor]:
    """The first half of `train_step`, without looking at a value (so it runs on fake tensors).

    Returns:
        The loss and the norm of all gradients before clipping, both scalars.
    """
    pieces = [tensors] if isinstance(tensors, StepTensors) else tensors
    counted = sum(len(piece.labels) for piece in pieces)
    total: Tensor | None = None
    for piece in pieces:
        mark("forward")
        loss = compute_loss(model, piece, kind, autocast_dtype)
        if len(pieces) > 1:
            # Means over pieces add up to the mean over the batch by how much each piece counts.
            loss = loss * (len(piece.labels) / counted)
        mark("backward")
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        total = loss.detach() if total is None else total + loss.detach()
    if total is None:
        raise ValueError("a step needs a batch")
    mark("optimizer")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=False)
    return total, norm


def apply_gradients(optimizer: torch.optim.Optimizer, *, mark: Mark = _unmarked) -> None:
    """The second half of `train_step`: the update; the gradients are dropped."""
    mark("optimizer")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def compute_loss(model: nn.Module, tensors: StepTensors, kind: str, autocast_dtype: torch.dtype | None) -> Tensor:
    """The mean loss of a batch, float32: cross entropy over classes or answer tokens, or the squared error.

    Raises:
        ValueError: The task kind is unknown.
    """
    beginning = nullcontext() if tensors.entry is None else tensors.entry.passing()
    device = tensors.input_ids.device.type
    with torch.autocast(device, dtype=autocast_dtype, enabled=autocast_dtype is not None), beginning:
        if kind == "causal_lm":
            logits = answer_logits(model, tensors)
        else:
            logits = model(tensors.input_ids, tensors.attention_mask, tensors.token_types)
    return loss_of(logits, tensors.labels, kind)


def loss_of(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The mean loss, float32, of logits that were computed already.

    Args:
        logits: `[batch, labels]`, or `[answers, vocabulary]`.
        labels: As in `StepTensors`.
        kind: The task kind.

    Raises:
        ValueError: The task kind is unknown.
    """
    if kind == "regression":
        return F.mse_loss(logits.float().squeeze(-1), labels)
    if kind in ("sequence_classification", "causal_lm"):
        return F.cross_entropy(logits.float(), labels)
    raise ValueError(f"no loss for the task kind {kind!r}")


def answer_logits(model: nn.Module, tensors: StepTensors) -> Tensor:
    """The logits at the answer positions of a language model: `[answers, vocabulary]`.

    The hidden states are selected before the output layer, so that the logits of prompt and padding, which are most of
    the memory of a small model with a large vocabulary, are never made.
    """
    positions = tensors.positions
    if positions is None:
        raise ValueError("a language model's batch needs its answer positions")
    head = _output_layer(model)
    lengthened = int(getattr(model, "virtual_tokens", 0))
    if head is None:
        logits: Tensor = model(tensors.input_ids, tensors.attention_mask, tensors.token_types)
        return logits.flatten(0, 1).index_select(0, positions)
    if lengthened:
        # A prompt stands before every row: place p of row i is place p + n of a row that is n longer.
        row = positions // tensors.input_ids.shape[1]
        positions = positions + (row + 1) * lengthened
    with _selecting(head, positions):
        selected: Tensor = model(tensors.input_ids, tensors.attention_mask, tensors.token_types)
    return selected


def _output_layer(model: nn.Module) -> nn.Module | None:
    inner = getattr(model, "model", model)
    find = getattr(inner, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None


@contextmanager
def _selecting(head: nn.Module, positions: Tensor) -> Iterator[None]:
    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, 1).index_select(0, positions), *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
