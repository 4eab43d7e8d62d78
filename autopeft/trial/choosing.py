"""What a build asks of the training data, answered from a worker's bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from autopeft.compose.adapt import AdaptedModel
from autopeft.cost.step import compute_loss, step_tensors
from autopeft.data.batches import pad
from autopeft.trial.clock import JobClock
from autopeft.trial.evaluate import subset
from autopeft.trial.setup import WorkSetup

FISHER_ROWS = 32


class FromTraining:
    """Answers for one build (`autopeft.compose.choose.TrainingData`). Final.

    Args:
        setup: The data.
        bare: Makes the base under a head without parts.
        device: Where to compute.
        clock: Asked between rows.
    """

    def __init__(
        self, setup: WorkSetup, bare: Callable[[], AdaptedModel], device: torch.device, clock: JobClock
    ) -> None:
        self._setup, self._bare, self._device, self._clock = setup, bare, device, clock

    def fisher(self, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """The empirical Fisher information of frozen weights: squared gradients of single rows' losses, summed.

        A fixed choice of 32 training rows; the head is as it is before training.
        """
        setup, model = self._setup, self._bare().eval()
        weights = {name: model.model.get_submodule(name).weight for name in names}
        found = {name: torch.zeros(weight.shape, device=weight.device) for name, weight in weights.items()}
        split = setup.data.splits["train"]
        precision = torch.bfloat16 if setup.precision == "bfloat16" else None
        for weight in weights.values():
            weight.requires_grad_(True)
        try:
            for row in subset(split, FISHER_ROWS):
                self._clock.check()
                batch = step_tensors(pad(split, np.array([row]), setup.data.pad_token), setup.kind, self._device)
                loss = compute_loss(model, batch, setup.kind, precision)
                gradients = torch.autograd.grad(loss, list(weights.values()))
                for name, gradient in zip(weights, gradients, strict=True):
                    found[name] += gradient.float().square()
        finally:
            # The weights belong to the shared base.
            for weight in weights.values():
                weight.requires_grad_(False)
        return found

    def frequent_tokens(self, count: int) -> torch.Tensor:
        """The tokens that are most frequent in the training rows; unseen ones, by number, where they run out."""
        used = np.bincount(self._setup.data.splits["train"].input_ids, minlength=count)
        return torch.from_numpy(np.argsort(-used, kind="stable")[:count].copy())

    def examples(self, count: int) -> torch.Tensor:
        """A fixed choice of training rows, one after the other and from the beginning again where they run out."""
        split = self._setup.data.splits["train"]
        rows = subset(split, count)
        tokens = np.concatenate([split.input_ids[split.offsets[row] : split.offsets[row + 1]] for row in rows])
        return torch.from_numpy(np.resize(tokens, count).astype(np.int64))
