"""Mixtures of experts: traced, predicted and planned like any other model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import autopeft
from autopeft.cost.flops import expert_weights, row_flops
from autopeft.inspect import GroupedProducts, module_map

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 300,
}
MIXTURE = MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_have_the_shapes_of_real_ones(dtype: torch.dtype) -> None:
    """Forward, and backward to the inputs and to trained experts; the model's own weights are transposed views."""

    def shapes(device: str) -> list[tuple[torch.Size, torch.dtype]]:
        left = torch.ones(8, 16, dtype=dtype, device=device, requires_grad=True)
        right = torch.ones(3, 32, 16, dtype=dtype, device=device, requires_grad=True)
        offsets = torch.tensor([2, 5, 8], dtype=torch.int32, device=device)
        out = F.grouped_mm(left, right.transpose(-2, -1), offs=offsets)
        (out * torch.ones_like(out)).sum().backward()
        made = [out, left.grad, right.grad]
        return [(tensor.shape, tensor.dtype) for tensor in made if tensor is not None]

    real = shapes("cpu")
    assert len(real) == 3
    with GroupedProducts():
        assert shapes("meta") == real
    with FakeTensorMode(allow_non_fake_inputs=True), GroupedProducts():
        assert shapes("cpu") == real


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixture_is_traced_in_both_dtypes(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        model = MixtralForCausalLM._from_config(MIXTURE, dtype=dtype)
    modules = module_map(model)
    assert modules.blocks == 2
    roles = {site.role for site in modules.sites}
    assert {"query", "key", "value", "output", "norm"} <= roles
    # Experts are no linear modules: nothing here adapts them.
    assert not roles & {"up", "gate", "down"}


def test_a_token_pays_for_the_experts_it_is_sent_to() -> None:
    model = MixtralForCausalLM(MIXTURE)
    # Two of four experts; gate, up and down in both blocks.
    assert expert_weights(model) == 2 * 2 * 3 * 64 * 96
    assert expert_weights(LlamaForCausalLM(LlamaConfig(**TINY))) == 0
    modules = module_map(model)
    without = row_flops(modules, [10], adapter_params=0)
    made = row_flops(modules, [10], adapter_params=0, experts=expert_weights(model))
    assert made.forward - without.forward == 2 * 10 * expert_weights(model)


@pytest.mark.usefixtures("few_predictions")
@pytest.mark.parametrize("tflops", [None, 1.0])
def test_a_mixture_can_be_planned(tmp_path: Path, tflops: float | None) -> None:
    """In bfloat16 for another device, in what suits this machine without one."""
    MIXTURE.save_pretrained(tmp_path / "mixture")
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"prompt": f"{split} question {row}?", "response": f"It is {row}."} for row in range(20)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"model": str(tmp_path / "mixture"), "data": str(data)}
    found = autopeft.plan(task, {"max_trials": 3}, device_tflops=tflops).to_dict()
    memory = found["space"]["memory_bytes"]
    assert memory["base"] < memory["smallest"] <= memory["samples_least"]
    assert found["time"]["device_hours"] > 0
