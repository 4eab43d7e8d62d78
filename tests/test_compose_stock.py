"""Adapters that plain peft has written, as a user brings them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from compose_models import build, carrier_of, logits_of, rows, train_steps, uniform
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from autopeft.compose.base import checksum
from autopeft.compose.stock import is_stock_folder, load_stock
from autopeft.compose.store import save_adapter
from autopeft.errors import InputError


@pytest.fixture
def bert(folders: dict[str, Path]) -> Path:
    return folders["bert"]


@pytest.fixture
def llama(folders: dict[str, Path]) -> Path:
    return folders["llama"]


def written(model: Path, folder: Path, config: peft.PeftConfig, auto: type) -> torch.Tensor:
    """An adapter with random weights, saved by peft alone; its logits."""
    torch.manual_seed(0)
    more = {} if auto is AutoModelForCausalLM else {"num_labels": 3}
    adapted = peft.get_peft_model(auto.from_pretrained(model, attn_implementation="eager", **more), config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.eval().save_pretrained(folder)
    ids, mask = rows()
    with torch.inference_mode():
        return adapted(input_ids=ids, attention_mask=mask).logits


CLASSIFIER_CONFIGS = [
    peft.LoraConfig(r=4, lora_alpha=7, target_modules=["query", "dense"], task_type="SEQ_CLS"),
    peft.LoraConfig(r=2, target_modules=["query"], use_dora=True, task_type="SEQ_CLS"),
    peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[], task_type="SEQ_CLS"),
    peft.PromptTuningConfig(num_virtual_tokens=5, task_type="SEQ_CLS"),
]


@pytest.mark.parametrize("config", CLASSIFIER_CONFIGS, ids=lambda config: str(config.peft_type.value))
def test_it_computes_what_peft_computes(bert: Path, tmp_path: Path, config: peft.PeftConfig) -> None:
    expected = written(bert, tmp_path / "adapter", config, AutoModelForSequenceClassification)
    carrier = carrier_of(bert, "sequence_classification", "stock")
    before = checksum(carrier)
    assert is_stock_folder(tmp_path / "adapter")
    adapted = load_stock(carrier, tmp_path / "adapter")
    with torch.inference_mode():
        assert torch.equal(adapted(*rows()), expected)
    assert checksum(carrier) == before
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    head = {name: tensor for name, tensor in tensors.items() if "classifier" in name}
    assert adapted.head_params == sum(tensor.numel() for tensor in head.values()) > 0
    assert adapted.adapter_params == sum(tensor.numel() for tensor in tensors.values()) - adapted.head_params > 0


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_the_base_is_left_alone_by_trained_biases(bert: Path, tmp_path: Path, bias: str) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], bias=bias, task_type="SEQ_CLS")
    expected = written(bert, tmp_path / "adapter", config, AutoModelForSequenceClassification)
    carrier = carrier_of(bert, "sequence_classification", "stock")
    before = checksum(carrier)
    adapted = load_stock(carrier, tmp_path / "adapter")
    assert checksum(carrier) == before
    with torch.inference_mode():
        assert torch.equal(adapted(*rows()), expected)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "layernorm"])
def test_what_autopeft_has_written_for_plain_peft_is_read_as_such(bert: Path, tmp_path: Path, method: str) -> None:
    carrier = carrier_of(bert, "sequence_classification", "stock")
    adapted = build(carrier, uniform(carrier.modules, method))
    train_steps(adapted)
    save_adapter(adapted, tmp_path / "adapter", meta={}, target="peft")
    (tmp_path / "plain").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / name, tmp_path / "plain" / name)
    again = load_stock(carrier, tmp_path / "plain")
    assert torch.equal(logits_of(again), logits_of(adapted))
    assert (again.adapter_params, again.head_params) == (adapted.adapter_params, adapted.head_params)


def test_a_language_model(llama: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    expected = written(llama, tmp_path / "adapter", config, AutoModelForCausalLM)
    adapted = load_stock(carrier_of(llama, "causal_lm", "lm"), tmp_path / "adapter")
    with torch.inference_mode():
        assert torch.equal(adapted(*rows()), expected)
    assert adapted.head_params == 0


def test_what_cannot_be_compared_is_refused(bert: Path, llama: Path, tmp_path: Path) -> None:
    carrier = carrier_of(bert, "sequence_classification", "stock")
    for name, text, change in (
        ("task", "not for SEQ_CLS", {"task_type": "CAUSAL_LM"}),
        ("start", "changes the base's weights", {"init_lora_weights": "pissa"}),
        ("rank", "does not fit the base model", {"r": 3}),
        ("modules", "does not", {"target_modules": ["query"]}),
        ("type", "does not know", {"peft_type": "NO_SUCH"}),
    ):
        folder = tmp_path / name
        written(bert, folder, CLASSIFIER_CONFIGS[0], AutoModelForSequenceClassification)
        values = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(InputError, match=text):
            load_stock(carrier, folder)
    prompts = tmp_path / "prompts"
    config = peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    written(llama, prompts, config, AutoModelForCausalLM)
    with pytest.raises(InputError, match="prompt method"):
        load_stock(carrier_of(llama, "causal_lm", "lm"), prompts)


def test_a_folder_without_its_head_is_refused(bert: Path, tmp_path: Path) -> None:
    written(bert, tmp_path / "adapter", CLASSIFIER_CONFIGS[0], AutoModelForSequenceClassification)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "classifier" not in name}, file)
    with pytest.raises(InputError, match="lacks .*classifier"):
        load_stock(carrier_of(bert, "sequence_classification", "stock"), tmp_path / "adapter")
    file.unlink()
    with pytest.raises(InputError, match="has no adapter_model"):
        load_stock(carrier_of(bert, "sequence_classification", "stock"), tmp_path / "adapter")
