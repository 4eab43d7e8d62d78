"""Trained biases beside LoRA, saved for plain peft: what it loads, what is read back, what the base keeps."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from compose_models import (
    CONFIGS,
    base_logits,
    build,
    carrier_of,
    logits_of,
    rows,
    train_steps,
    training,
    uniform,
)
from example_search import ExampleSearch
from fresh import run_without_autopeft
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from autopeft import catalogue
from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.base import Carrier, checksum, meta_carrier
from autopeft.compose.lower import lower
from autopeft.compose.manifest import write_manifest
from autopeft.compose.stock import load_stock
from autopeft.compose.store import describe, load_adapter, save_adapter
from autopeft.cost.size import adapter_bytes
from autopeft.errors import DamagedFile
from autopeft.journal import SearchLog
from autopeft.report import gather
from autopeft.space import bind, resolve
from autopeft.space.beside import BIASES_STAY
from autopeft.space.configuration import Configuration, Part

KINDS = {"bert": "sequence_classification", "gpt2": "causal_lm"}
CLOSE = 1e-6
"""Largest difference of logits, as a share of the largest logit: sums are taken in another order."""

LOAD_WITH_PEFT = """
import sys, torch, transformers
from safetensors.torch import load_file
from peft import PeftModel
model, folder, inputs, auto, labels = sys.argv[1:6]
kwargs = {"num_labels": int(labels)} if int(labels) else {}
base = getattr(transformers, auto).from_pretrained(model, dtype=torch.float32, attn_implementation="eager", **kwargs)
data = load_file(inputs)
with torch.no_grad():
    bare = base.eval()(input_ids=data["ids"], attention_mask=data["mask"])[0]
    adapted = PeftModel.from_pretrained(base, folder).eval()
    output = adapted(input_ids=data["ids"], attention_mask=data["mask"])[0]
    with adapted.disable_adapter():
        off = adapted(input_ids=data["ids"], attention_mask=data["mask"])[0]
assert "autopeft" not in sys.modules
print(float((output - data["raw"]).abs().max() / data["raw"].abs().max()), float((off - bare).abs().max()))
"""


def on(carrier: Carrier, *methods: str, roles: tuple[str, ...] = (), everywhere: bool = False) -> Configuration:
    """Biases on all sites, or only where the other method is; that on the sites of some roles."""
    modules = carrier.modules
    full = uniform(modules, *methods)
    sites: dict[str, list[Part]] = {}
    for name, parts in full.sites:
        there = not roles or modules[name].role in roles
        sites[name] = [part for part in parts if there or (part.method == "bias" and everywhere)]
    return Configuration.of(sites, training())


def trained(carrier: Carrier, configuration: Configuration, *, autocast: bool = False) -> AdaptedModel:
    adapted = build(carrier, configuration)
    train_steps(adapted, steps=5, autocast=autocast)
    return adapted


def write_inputs(adapted: AdaptedModel, path: Path) -> Path:
    ids, mask = rows()
    with torch.no_grad():
        raw = adapted.model(input_ids=ids, attention_mask=mask)[0]
    save_file({"ids": ids, "mask": mask, "raw": raw.float().contiguous()}, path)
    return path


def folder_hash(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


CASES = [
    ("bert", "stock", ("lora", "bias"), ("query", "value"), True, "all"),
    ("bert", "stock", ("dora", "bias"), ("query", "down"), False, "lora_only"),
    ("bert", "mean", ("bias", "lora"), (), True, "all"),
    ("gpt2", "lm", ("lora", "bias"), ("qkv", "up"), False, "lora_only"),
    ("gpt2", "lm", ("lora", "bias"), ("qkv",), True, "all"),
]


@pytest.mark.parametrize(("name", "head", "methods", "roles", "everywhere", "said"), CASES)
def test_plain_peft_computes_the_same(
    folders: dict[str, Path],
    name: str,
    head: str,
    methods: tuple[str, ...],
    roles: tuple[str, ...],
    everywhere: bool,
    said: str,
    tmp_path: Path,
) -> None:
    carrier = carrier_of(folders[name], KINDS[name], head)
    frozen, on_disk = checksum(carrier), folder_hash(folders[name])
    configuration = on(carrier, *methods, roles=roles, everywhere=everywhere)
    adapted = trained(carrier, configuration)
    weights = save_adapter(adapted, tmp_path / "adapter", meta={}, target="peft")
    about = describe(tmp_path / "adapter")
    assert (about["lowered_to"], about["writes_base_biases"]) == ("LORA", True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["bias"]) == ("LORA", said)
    auto = {"stock": "AutoModelForSequenceClassification", "mean": "AutoModel", "lm": "AutoModelForCausalLM"}[head]
    inputs = write_inputs(adapted, tmp_path / "inputs.safetensors")
    labels = 3 if head == "stock" else 0
    printed = run_without_autopeft(LOAD_WITH_PEFT, folders[name], tmp_path / "adapter", inputs, auto, labels)
    far, off = map(float, printed.split())
    assert far <= CLOSE
    # What the folder is marked for: peft does not put the base's biases back.
    assert off > 1e-3
    again = load_adapter(carrier, tmp_path / "adapter")
    assert again.configuration == configuration
    assert again.adapter_params == adapted.adapter_params
    expected = logits_of(adapted)
    assert float((logits_of(again) - expected).abs().max() / expected.abs().max()) <= CLOSE
    with again.model.disable_adapter():
        assert torch.equal(logits_of(again), base_logits(carrier, again))
    assert save_adapter(again, tmp_path / "again", meta={}, target="peft") == weights
    assert (checksum(carrier), folder_hash(folders[name])) == (frozen, on_disk)


@pytest.mark.parametrize("target", ["any", "merged", "vllm"])
def test_for_other_targets_it_stays_the_exact_hybrid(bert: Carrier, tmp_path: Path, target: str) -> None:
    adapted = trained(bert, on(bert, "lora", "bias"))
    save_adapter(adapted, tmp_path / "adapter", meta={}, target=target)
    about = describe(tmp_path / "adapter")
    assert about["lowered_to"] is None
    assert "writes_base_biases" not in about
    assert torch.equal(logits_of(load_adapter(bert, tmp_path / "adapter")), logits_of(adapted))


@pytest.mark.parametrize("methods", [("bias",), ("ia3", "bias"), ("lora", "bias", "layernorm"), ("bias", "dora")])
def test_what_one_config_of_peft_cannot_say(bert: Carrier, methods: tuple[str, ...]) -> None:
    # peft's DoRA takes the base's bias off before it scales, so a bias inside of it is another function.
    assert lower(uniform(bert.modules, *methods), bert, target="peft") is None


def test_it_takes_no_more_room_than_the_hybrid(bert: Carrier, tmp_path: Path) -> None:
    # Limits on the disk are predicted for that one.
    adapted = build(bert, on(bert, "lora", "bias", roles=("query",), everywhere=True))
    for target in ("any", "peft"):
        save_adapter(adapted, tmp_path / target, meta={}, target=target)
    sizes = [sum(path.stat().st_size for path in (tmp_path / target).iterdir()) for target in ("any", "peft")]
    assert sizes[1] < sizes[0] <= adapter_bytes(adapted.configuration, bert.modules, adapted.head_params)


def test_lora_alone_is_saved_as_ever(bert: Carrier, tmp_path: Path) -> None:
    adapted = trained(bert, uniform(bert.modules, "lora"))
    weights = [save_adapter(adapted, tmp_path / name, meta={}, target=name) for name in ("any", "peft")]
    assert weights[0] == weights[1]
    assert "writes_base_biases" not in describe(tmp_path / "peft")


@pytest.mark.parametrize("head", ["stock", "mean"])
def test_after_a_search_in_bfloat16_the_base_is_not_rounded(
    folders: dict[str, Path], head: str, tmp_path: Path
) -> None:
    rounded = carrier_of(folders["bert"], "sequence_classification", head, dtype="bfloat16")
    full = carrier_of(folders["bert"], "sequence_classification", head)
    adapted = trained(rounded, on(rounded, "lora", "bias", roles=("query",), everywhere=True), autocast=True)
    save_adapter(adapted, tmp_path / "adapter", meta={}, target="peft")
    save_adapter(adapted, tmp_path / "hybrid", meta={})
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    deltas = load_file(tmp_path / "hybrid" / "adapter_model.safetensors")
    biases = {name: tensor for name, tensor in stored.items() if name.endswith(".bias") and "classifier" not in name}
    assert len(biases) == sum(name.endswith("bias_part.delta") for name in deltas) > 20
    apart = 0.0
    for name, tensor in biases.items():
        site = name.removeprefix("base_model.model.").removesuffix(".bias").removesuffix(".base_layer")
        delta, frozen = deltas[f"base_model.model.{site}.bias_part.delta"], full.model.get_submodule(site).bias
        assert torch.equal(tensor, frozen + delta)
        apart = max(apart, float((frozen - rounded.model.get_submodule(site).bias.float()).abs().max()))
    assert apart > 1e-4
    # Over the base of full precision it is what the hybrid is there; over the rounded one what was trained.
    for carrier in (full, rounded):
        expected = logits_of(load_adapter(carrier, tmp_path / "hybrid"))
        found = logits_of(load_adapter(carrier, tmp_path / "adapter"))
        assert float((found - expected).abs().max() / expected.abs().max()) <= (CLOSE if carrier is full else 1e-2)
    again = load_adapter(full, tmp_path / "adapter")
    auto = "AutoModelForSequenceClassification" if head == "stock" else "AutoModel"
    inputs = write_inputs(again, tmp_path / "inputs.safetensors")
    labels = 3 if head == "stock" else 0
    printed = run_without_autopeft(LOAD_WITH_PEFT, folders["bert"], tmp_path / "adapter", inputs, auto, labels)
    assert float(printed.split()[0]) <= CLOSE


def test_a_bias_that_no_file_holds_is_taken_as_it_was_trained(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = shutil.copytree(folders["bert"], tmp_path / "model")
    file = copied / "model.safetensors"
    tensors = load_file(file)
    # As in the files of BERT's time, and one under a name that says nothing.
    renamed = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in tensors.items()}
    save_file(renamed, file, metadata={"format": "pt"})
    carrier = carrier_of(copied, "sequence_classification", "mean", dtype="bfloat16")
    assert len(carrier.biases) == sum(name.endswith("bias") for name in tensors)
    lost = "encoder.layer.1.output.dense.bias"
    unknown = {name: value for name, value in carrier.biases.items() if name != lost}
    object.__setattr__(carrier, "biases", unknown)
    adapted = trained(carrier, on(carrier, "lora", "bias"), autocast=True)
    save_adapter(adapted, tmp_path / "adapter", meta={}, target="peft")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    site = lost.removesuffix(".bias")
    delta = dict(adapted.model.named_parameters())[f"base_model.model.{site}.bias_part.default.delta"]
    frozen = carrier.model.get_parameter(lost).float()
    assert torch.equal(stored[f"base_model.model.{site}.base_layer.bias"], frozen + delta)


def test_peft_writes_it_again_and_we_read_that(folders: dict[str, Path], tmp_path: Path) -> None:
    carrier = carrier_of(folders["bert"], "sequence_classification", "stock")
    adapted = trained(carrier, on(carrier, "lora", "bias", roles=("query",), everywhere=True))
    save_adapter(adapted, tmp_path / "adapter", meta={}, target="peft")
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / name, plain / name)
    expected = logits_of(adapted)
    copied = load_stock(carrier, plain)
    assert float((logits_of(copied) - expected).abs().max() / expected.abs().max()) <= CLOSE
    assert (copied.adapter_params, copied.head_params) == (adapted.adapter_params, adapted.head_params)
    copied.model.save_pretrained(plain)
    # peft stores all biases of the model, those included that were not trained.
    assert len(load_file(plain / "adapter_model.safetensors")) > len(
        load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    )
    assert torch.equal(logits_of(load_stock(carrier, plain)), logits_of(copied))


def test_a_lost_bias_is_noticed(bert: Carrier, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(trained(bert, on(bert, "lora", "bias")), folder, meta={}, target="peft")
    tensors = load_file(folder / "adapter_model.safetensors")
    lost = next(name for name in tensors if name.endswith("base_layer.bias"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, folder / "adapter_model.safetensors")
    with pytest.raises(DamagedFile):
        load_adapter(bert, folder)
    write_manifest(folder)
    with pytest.raises(DamagedFile, match="bias"):
        load_adapter(bert, folder)


def test_peft_says_nothing_about_what_it_loads(bert: Carrier, folders: dict[str, Path], tmp_path: Path) -> None:
    save_adapter(trained(bert, on(bert, "lora", "bias")), tmp_path / "adapter", meta={}, target="peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PeftModel.from_pretrained(AutoModel.from_pretrained(folders["bert"]), tmp_path / "adapter")


@pytest.mark.parametrize("space", ["stock", "hybrid"])
def test_a_search_for_peft_draws_them_and_lowers_all(space: str) -> None:
    values = CONFIGS["bert"].to_dict() | {"model_type": "bert"}
    carrier = meta_carrier(values, kind="sequence_classification", head="stock", labels=3)
    modules, resolved = carrier.modules, resolve(catalogue.read("spaces", space))
    limit = modules.base_params // 20
    found = bind(resolved, modules, kind="sequence_classification", target="peft", param_limit=limit)
    drawn = [found.decode(found.draw(index, 0)) for index in range(150)]
    assert {methods for c in drawn if "bias" in (methods := c.methods)} == {("bias", "lora"), ("bias", "dora")}
    assert all(lower(configuration, carrier, target="peft") is not None for configuration in drawn)
    assert 5 < sum("bias" in configuration.methods for configuration in drawn) < 75
    assert {"lora", "dora", "ia3", "layernorm"} <= {c.methods[0] for c in drawn if len(c.methods) == 1}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_model(minilm: Path, tmp_path: Path, dtype: str) -> None:
    carrier = carrier_of(minilm, "sequence_classification", "stock", dtype=dtype)
    before = checksum(carrier)
    configuration = on(carrier, "lora", "bias", roles=("query", "value"), everywhere=True)
    save_adapter(trained(carrier, configuration, autocast=dtype == "bfloat16"), tmp_path / "a", meta={}, target="peft")
    assert checksum(carrier) == before
    again = load_adapter(carrier_of(minilm, "sequence_classification", "stock"), tmp_path / "a")
    inputs = write_inputs(again, tmp_path / "inputs.safetensors")
    auto = "AutoModelForSequenceClassification"
    printed = run_without_autopeft(LOAD_WITH_PEFT, minilm, tmp_path / "a", inputs, auto, 3)
    far, off = map(float, printed.split())
    assert far <= CLOSE
    assert off > 1e-3


@pytest.mark.parametrize("target", ["any", "peft"])
def test_the_report_says_that_biases_stay(tmp_path: Path, target: str) -> None:
    search = ExampleSearch(tmp_path / "run", target=target).whole()
    log = SearchLog.fold(search.journal.records)
    assert (BIASES_STAY in gather(log).notes) == (target == "peft")
    # Where LoRA without biases is taken, there is nothing to say.
    log.verdict = {**(log.verdict or {}), "takes": "baseline"}
    assert BIASES_STAY not in gather(log).notes
