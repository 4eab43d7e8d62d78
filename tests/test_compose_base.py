"""Base models: what is accepted, what is shared, what is never copied or written to."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from compose_models import CONFIGS, carrier_of, rows
from transformers import AutoModel, AutoModelForCausalLM

from autopeft.compose.base import (
    attach,
    checksum,
    identify,
    load_base,
    load_tokenizer,
    meta_carrier,
    plain_folder,
    skeleton,
)
from autopeft.errors import InputError


@pytest.fixture
def bert(folders: dict[str, Path]) -> Path:
    return folders["bert"]


@pytest.fixture
def llama(folders: dict[str, Path]) -> Path:
    return folders["llama"]


@pytest.fixture
def copied(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "model"))


def test_identity_is_that_of_the_content(bert: Path, copied: Path) -> None:
    identity = identify(bert)
    assert identity == identify(copied)
    assert identity.id == f"local:{identity.content_hash[:16]}"
    assert str(bert) not in identity.id
    assert identity.model_type == "bert"
    weights = next(copied.glob("*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    assert identify(copied).content_hash != identity.content_hash


def test_every_fault_of_a_folder_is_named_at_once(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "novel", "auto_map": {"AutoModel": "m.M"}}))
    (copied / "modeling_novel.py").write_text("raise SystemExit")
    weights = next(copied.glob("*.safetensors"))
    weights.rename(copied / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        identify(copied)
    said = [problem.rule for problem in caught.value.problems]
    assert len(said) == 4
    for words, rule in zip(("auto_map", "novel", "Python code", "pickled"), said, strict=True):
        assert words in rule


@pytest.mark.parametrize(
    ("name", "rule"),
    [("missing/folder/here", "does not exist"), ("./nowhere", "does not exist"), ("none.gguf", "is no file")],
)
def test_a_missing_model(name: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        identify(name)


def test_a_hub_id_without_network_is_an_input_error() -> None:
    with pytest.raises(InputError, match="could not be fetched"):
        identify("somebody/some-model")


def test_broken_config_and_truncated_weights(copied: Path) -> None:
    weights = next(copied.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_base(copied, kind="sequence_classification")
    (copied / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_base(copied, kind="sequence_classification")


def test_weights_of_another_model_are_refused(copied: Path, llama: Path) -> None:
    shutil.copy(next(llama.glob("*.safetensors")), next(copied.glob("*.safetensors")))
    with pytest.raises(InputError, match="lacks"):
        load_base(copied, kind="sequence_classification")


@pytest.mark.parametrize("head", ["stock", "cls", "mean"])
def test_attaching_copies_nothing_and_equals_from_pretrained(bert: Path, head: str) -> None:
    base = load_base(bert, kind="sequence_classification")
    carrier = attach(base, head=head, labels=3)
    prefix = "bert." if head == "stock" else ""
    ours = dict(carrier.model.named_parameters())
    assert all(ours[prefix + name].data_ptr() == array.ctypes.data for name, array in base.tensors.items())
    assert carrier.head_modules == (("classifier",) if head == "stock" else ())
    assert not carrier.model.training
    assert not any(p.requires_grad for p in carrier.model.parameters())
    ids, mask = rows()
    reference = AutoModel.from_pretrained(bert, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
        backbone = carrier.model.bert if head == "stock" else carrier.model
        assert torch.equal(backbone(input_ids=ids, attention_mask=mask).last_hidden_state, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_survives_pickling_with_buffers_out_of_band(llama: Path, dtype: str) -> None:
    base = load_base(llama, kind="causal_lm", dtype=dtype)  # type: ignore[arg-type]
    buffers: list[pickle.PickleBuffer] = []
    raw = pickle.dumps(base, protocol=5, buffer_callback=buffers.append)
    assert len(raw) < 0.2 * base.nbytes
    again = pickle.loads(raw, buffers=[memoryview(b.raw()).toreadonly() for b in buffers])  # noqa: S301
    carrier, twin = attach(base, head="lm"), attach(again, head="lm")
    assert checksum(carrier) == checksum(twin)
    ids, mask = rows()
    with torch.no_grad():
        assert torch.equal(carrier.model(ids, mask).logits, twin.model(ids, mask).logits)
    reference = AutoModelForCausalLM.from_pretrained(llama, dtype=getattr(torch, dtype), attn_implementation="eager")
    with torch.no_grad():
        assert torch.equal(carrier.model(ids, mask).logits, reference(ids, mask).logits)


def test_the_seed_fixes_the_stock_head_and_the_global_generator_is_left_alone(bert: Path) -> None:
    base = load_base(bert, kind="sequence_classification")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, two, other = (attach(base, head="stock", labels=3, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.rand(3), expected)
    assert checksum(one) == checksum(two) != checksum(other)


def test_regression_and_class_settings(bert: Path) -> None:
    config = carrier_of(bert, "regression", "stock").model.config
    assert (config.num_labels, config.problem_type) == (1, "regression")
    config = carrier_of(bert, "sequence_classification", "stock").model.config
    assert (config.num_labels, config.problem_type) == (3, "single_label_classification")


def test_skeleton_shares_tensors_and_nothing_else(bert: Path) -> None:
    carrier = carrier_of(bert, "sequence_classification", "mean")
    bare = skeleton(carrier)
    pairs = list(zip(bare.named_parameters(), carrier.model.named_parameters(), strict=True))
    assert all(a is b for (_, a), (_, b) in pairs)
    own = {id(module) for module in carrier.model.modules()}
    assert not any(id(module) in own for module in bare.modules())
    assert bare.config is not carrier.model.config


def test_checksum_sees_one_changed_number(bert: Path) -> None:
    carrier = carrier_of(bert, "sequence_classification", "mean")
    before = checksum(carrier)
    with torch.no_grad():
        next(carrier.model.parameters())[3, 3] += 1e-3
    assert checksum(carrier) != before


@pytest.mark.parametrize("head", ["stock", "mean"])
def test_a_config_alone_gives_the_same_map(bert: Path, tmp_path: Path, head: str) -> None:
    shutil.copy(bert / "config.json", tmp_path / "config.json")
    planned = meta_carrier(tmp_path, kind="sequence_classification", head=head, labels=3)
    real = carrier_of(bert, "sequence_classification", head)
    assert all(parameter.is_meta for parameter in planned.model.parameters())
    assert planned.modules == real.modules
    assert planned.head_modules == real.head_modules


def test_fused_attention_falls_back_where_there_is_none() -> None:
    config = CONFIGS["bert"].to_dict()
    assert meta_carrier(config, kind="regression", head="mean", labels=1, attention="sdpa").attention == "sdpa"
    from transformers import DebertaV2Config

    deberta = DebertaV2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=50).to_dict()
    assert meta_carrier(deberta, kind="regression", head="mean", labels=1, attention="sdpa").attention == "eager"


def test_a_head_that_the_model_has_no_class_for() -> None:
    from transformers import ViTConfig

    with pytest.raises(InputError, match="no transformers class"):
        meta_carrier(ViTConfig().to_dict(), kind="causal_lm", head="lm")


def test_real_model_and_tokenizer(minilm: Path, bert: Path) -> None:
    carrier = carrier_of(minilm, "sequence_classification", "mean")
    modules = carrier.modules
    assert (modules.blocks, modules.hidden_size, modules.base_params) == (6, 384, 22_713_216)
    assert load_tokenizer(minilm).pad_token == "[PAD]"
    with pytest.raises(InputError, match="no tokenizer files"):
        load_tokenizer(bert)


@pytest.mark.slow
def test_a_gguf_file_is_converted_once(smollm2: Path) -> None:
    """The conversion dequantises: the folder is an ordinary model, and peft sees no quantised layer."""
    from autopeft.testing.real import smollm2_gguf

    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())
    assert plain_folder(smollm2) == smollm2
    assert smollm2_gguf().suffix == ".gguf"
    carrier = carrier_of(smollm2, "causal_lm", "lm", dtype="bfloat16")
    tokenizer = load_tokenizer(smollm2)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    output = carrier.model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
    modules = carrier.modules
    assert (modules.blocks, len(modules.select(["gate"]))) == (30, 30)
