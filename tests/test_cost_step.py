"""The one optimizer step that is trained and predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopeft.cost.live import measure
from autopeft.cost.step import (
    answer_logits,
    build_optimizer,
    compute_gradients,
    compute_loss,
    micro_batches,
    step_tensors,
    train_step,
)
from autopeft.data.encoded import Batch
from autopeft.errors import TrialFailure
from autopeft.space.configuration import Training

TRAINING = Training(rates=(("lora", 0.02),), head_rate=0.01, batch_size=4)


class Classifier(nn.Module):
    """Mean of embeddings, then a linear layer."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 8)
        self.head = nn.Linear(8, labels)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        return self.head((self.embed(ids) * mask[..., None]).mean(1))


class LanguageModel(nn.Module):
    """A tiny Llama behind the signature of an adapted model; `hidden` hides its output layer from the selection."""

    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
        self.inner = LlamaForCausalLM(LlamaConfig(vocab_size=400, num_key_value_heads=2, **sizes)).eval()
        if not hidden:
            self.model = self.inner

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        return self.inner(input_ids=ids, attention_mask=mask, use_cache=False).logits


def _batch(labels: np.ndarray, length: int = 6) -> Batch:
    rows = len(labels)
    ids = np.arange(rows * length).reshape(rows, length) % 50
    mask = np.ones_like(ids)
    mask[0, -2:] = 0
    return Batch(np.arange(rows), ids, mask, None, labels)


def _answers(rows: int = 3, length: int = 6) -> np.ndarray:
    labels = np.full((rows, length), -100)
    labels[0, 2:4] = [7, 8]
    labels[1, 5] = 9
    labels[2, 0] = 3  # The first token is predicted by nothing, so it can be no answer.
    labels[2, 1:3] = [4, 5]
    return labels


def test_classification_and_regression_losses() -> None:
    classes = step_tensors(_batch(np.array([0, 2, 1, 2])), "sequence_classification")
    model = Classifier(3)
    logits = model(classes.input_ids, classes.attention_mask)
    assert compute_loss(model, classes, "sequence_classification", None) == F.cross_entropy(logits, classes.labels)

    targets = step_tensors(_batch(np.array([0.5, 2.0, -1.0, 3.0])), "regression")
    model = Classifier(1)
    expected = (model(targets.input_ids, targets.attention_mask)[:, 0] - targets.labels).square().mean()
    assert compute_loss(model, targets, "regression", None).item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="no loss"):
        compute_loss(model, targets, "image_generation", None)


@pytest.mark.parametrize("hidden", [False, True])
def test_language_model_loss_is_that_of_the_shifted_logits(hidden: bool) -> None:
    batch = _batch(_answers())
    tensors = step_tensors(batch, "causal_lm")
    assert tensors.labels.tolist() == [7, 8, 9, 4, 5]
    assert tensors.positions is not None
    assert tensors.positions.tolist() == [1, 2, 10, 12, 13]
    model = LanguageModel(hidden)
    with torch.no_grad():
        logits = model(tensors.input_ids, tensors.attention_mask)[:, :-1].flatten(0, 1)
        expected = F.cross_entropy(logits, torch.from_numpy(batch.labels)[:, 1:].flatten(), ignore_index=-100)
        assert compute_loss(model, tensors, "causal_lm", None).item() == pytest.approx(expected.item(), rel=1e-5)
        assert answer_logits(model, tensors).shape == (5, 400)
        # The selection ends with the step.
        assert model(tensors.input_ids, tensors.attention_mask).shape == (3, 6, 400)


def test_selecting_before_the_output_layer_saves_its_logits() -> None:
    tensors = step_tensors(_batch(_answers(), 6), "causal_lm")

    def peak(model: LanguageModel) -> int:
        held = [*model.parameters(), *model.buffers()]
        return measure(lambda _: compute_loss(model, tensors, "causal_lm", None), held).bytes

    # All logits: 3 rows x 6 tokens x 400 words x 4 bytes.
    assert peak(LanguageModel(hidden=True)) - peak(LanguageModel()) > 0.5 * 3 * 6 * 400 * 4


def test_answer_positions_are_required() -> None:
    tensors = step_tensors(_batch(np.array([0, 1, 0])), "sequence_classification")
    with pytest.raises(ValueError, match="answer positions"):
        answer_logits(LanguageModel(), tensors)


def test_a_step_updates_each_group_at_its_own_rate_and_drops_the_gradients() -> None:
    model = Classifier(3)
    optimizer = build_optimizer(
        {"lora": [model.embed.weight], "head": [*model.head.parameters()], "none": []}, TRAINING
    )
    assert [(g["name"], g["lr"], g["peak"]) for g in optimizer.param_groups] == [
        ("lora", 0.02, 0.02),
        ("head", 0.01, 0.01),
    ]
    before = [p.detach().clone() for p in model.parameters()]
    phases: list[str] = []
    tensors = step_tensors(_batch(np.array([0, 2, 1, 2])), "sequence_classification")
    loss = train_step(model, tensors, optimizer, "sequence_classification", None, mark=phases.append)
    moved = [(p.detach() - old).abs().max().item() for p, old in zip(model.parameters(), before, strict=True)]
    # The first step of Adam moves every weight that has a gradient by its rate.
    assert moved == pytest.approx([0.02, 0.01, 0.01], rel=1e-3)
    assert all(p.grad is None for p in model.parameters())
    assert phases[:2] == ["forward", "backward"]
    assert set(phases[2:]) == {"optimizer"}
    assert train_step(model, tensors, optimizer, "sequence_classification", None) < loss


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sequence_classification", "regression", "causal_lm"])
def test_the_gradients_of_pieces_add_up_to_those_of_the_batch(kind: str, rows: int) -> None:
    labels = {
        "sequence_classification": np.array([0, 2, 1]),
        "regression": np.array([0.5, 2.0, -1.0]),
        # One of the rows has three answers, one has a single one: a mean of means would be another loss.
        "causal_lm": _answers(),
    }[kind]
    batch = _batch(labels)
    if kind == "causal_lm":
        batch.labels[2, 1:3] = -100
    model = LanguageModel() if kind == "causal_lm" else Classifier(1 if kind == "regression" else 3)
    optimizer = build_optimizer({"lora": [*model.parameters()]}, TRAINING)
    found = []
    for tensors in (step_tensors(batch, kind), micro_batches(batch, kind, rows)):
        loss, norm = compute_gradients(model, tensors, optimizer, kind, None)
        found.append((loss, norm, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        optimizer.zero_grad(set_to_none=True)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


def test_gradients_are_clipped_to_a_norm_of_one() -> None:
    model = Classifier(1)
    tensors = step_tensors(_batch(np.array([1000.0, 2000.0, -1000.0, 3000.0])), "regression")
    optimizer = build_optimizer({"lora": [model.embed.weight], "head": [*model.head.parameters()]}, TRAINING)
    _, norm = compute_gradients(model, tensors, optimizer, "regression", None)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() > 100
    assert clipped.item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_trial_and_updates_nothing(poison: float) -> None:
    model = Classifier(1)
    optimizer = build_optimizer({"lora": [model.embed.weight], "head": [*model.head.parameters()]}, TRAINING)
    before = [p.detach().clone() for p in model.parameters()]
    tensors = step_tensors(_batch(np.array([poison, 1.0, 1.0, 1.0])), "regression")
    with pytest.raises(TrialFailure, match="nan") as failure:
        train_step(model, tensors, optimizer, "regression", None)
    assert failure.value.reason == "nan"
    assert not failure.value.infeasible
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_that_is_not_finite_ends_the_trial() -> None:
    model = Classifier(1)
    optimizer = build_optimizer({"head": [*model.parameters()]}, TRAINING)
    model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    tensors = step_tensors(_batch(np.array([0.0, 1.0, 1.0, 1.0])), "regression")
    with pytest.raises(TrialFailure, match="norm of the gradients"):
        train_step(model, tensors, optimizer, "regression", None)


def test_autocast_computes_in_bfloat16_and_returns_a_float32_loss() -> None:
    model = Classifier(3)
    seen: list[torch.dtype] = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    tensors = step_tensors(_batch(np.array([0, 2, 1, 2])), "sequence_classification")
    loss = compute_loss(model, tensors, "sequence_classification", torch.bfloat16)
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
