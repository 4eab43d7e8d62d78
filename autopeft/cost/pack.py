"""One optimizer step of several models at once.

Forward and backward pass run once over the rows of all members. Losses are means over a member's own rows, and no
parameter belongs to two members, so that the gradient of the sum of the losses is each one's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.compose.pack import PackedModel
from autopeft.cost.step import CLIP_NORM, StepTensors, answer_logits, apply_gradients, loss_of

__all__ = ["packed_gradients", "packed_logits", "packed_step"]


def packed_step(
    packed: PackedModel,
    batches: Sequence[StepTensors],
    optimizers: Sequence[torch.optim.Optimizer],
    kind: str,
    autocast_dtype: torch.dtype | None,
    *,
    pad_token: int = 0,
) -> list[float | None]:
    """Forward pass, losses, backward pass; then clipping and update of each member apart; the gradients are gone.

    Args:
        packed: In training mode.
        batches: One for each member, each padded to its own length.
        optimizers: One for each member.
        kind: The task kind.
        autocast_dtype: Dtype of `torch.autocast` in the forward pass, or None for none.
        pad_token: Fills up the rows of shorter batches.

    Returns:
        The loss of each member; None where the loss or a gradient was not finite, and nothing was updated.
    """
    losses, norms = packed_gradients(packed, batches, optimizers, kind, autocast_dtype, pad_token=pad_token)
    # One wait for the device for all members.
    values: list[list[float]] = torch.stack([torch.stack(losses), torch.stack(norms)]).tolist()
    found: list[float | None] = []
    for loss, norm, optimizer in zip(*values, optimizers, strict=True):
        if math.isfinite(loss) and math.isfinite(norm):
            apply_gradients(optimizer)
            found.append(loss)
        else:
            optimizer.zero_grad(set_to_none=True)
            found.append(None)
    return found


def packed_gradients(
    packed: PackedModel,
    batches: Sequence[StepTensors],
    optimizers: Sequence[torch.optim.Optimizer],
    kind: str,
    autocast_dtype: torch.dtype | None,
    *,
    pad_token: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """The first half of `packed_step`, without looking at a value.

    Returns:
        Of each member the loss, and the norm of its gradients before clipping: scalars.
    """
    device = next(packed.parameters()).device
    with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        logits, labels = packed_logits(packed, batches, kind, pad_token)
    losses = [loss_of(own, right, kind) for own, right in zip(logits, labels, strict=True)]
    torch.autograd.backward(losses)
    norms = []
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=False))
    return [loss.detach() for loss in losses], norms


def packed_logits(
    packed: PackedModel, batches: Sequence[StepTensors], kind: str, pad_token: int = 0
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Logits and labels of each member on its own batch.

    Args:
        packed: The pack; what it runs on is moved to its device.
        batches: One for each member, each padded to its own length, on any device.
        kind: The task kind.
        pad_token: Fills up the rows of shorter batches.

    Returns:
        Of each member `[rows, labels]`, or `[answers, vocabulary]` for ``causal_lm``, and the labels of these.
    """
    packed.lay([(batch.input_ids.shape[0], batch.input_ids.shape[1]) for batch in batches])
    together = join(batches, pad_token).to(next(packed.parameters()).device)
    counts = [len(batch.labels) for batch in batches]
    if kind == "causal_lm":
        logits = answer_logits(packed, together)
    else:
        logits = packed(together.input_ids, together.attention_mask, together.token_types)
    return logits.split(counts), together.labels.split(counts)


def join(batches: Sequence[StepTensors], pad_token: int) -> StepTensors:
    """Batches one below the other, padded on the right to the longest.

    Args:
        batches: Each padded to its own length.
        pad_token: Fills up the rows of shorter ones.
    """
    length = max(batch.input_ids.shape[1] for batch in batches)

    def below(tensors: Iterable[Tensor], value: int = 0) -> Tensor:
        return torch.cat([functional.pad(t, (0, length - t.shape[1]), value=value) for t in tensors])

    types = [batch.token_types for batch in batches if batch.token_types is not None]
    positions, before = [], 0
    for batch in batches:
        rows, own = batch.input_ids.shape
        if batch.positions is not None:
            # Row and place in the flattened batch of its own, then in the one of all.
            row = torch.div(batch.positions, own, rounding_mode="floor")
            positions.append((before + row) * length + batch.positions - row * own)
        before += rows
    return StepTensors(
        below((batch.input_ids for batch in batches), pad_token),
        below(batch.attention_mask for batch in batches),
        below(types) if types else None,
        torch.cat([batch.labels for batch in batches]),
        torch.cat(positions) if positions else None,
    )
