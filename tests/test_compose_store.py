"""Adapters on disk: read back exactly, in fresh processes, by peft alone where lowered; damage is always noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compose_models import (
    alone,
    arbitrary,
    build,
    carrier_of,
    logits_of,
    rows,
    train_steps,
    training,
    uniform,
)
from fresh import run_script, run_without_autopeft
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from autopeft.compose.base import Carrier, checksum
from autopeft.compose.lower import lower
from autopeft.compose.store import describe, load_adapter, save_adapter
from autopeft.errors import DamagedFile, InputError
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part

KINDS = {"bert": "sequence_classification", "llama": "causal_lm", "gpt2": "causal_lm"}

LOAD_OURS = """
import sys, torch
from safetensors.torch import load_file
from autopeft.compose.base import load_base, attach
from autopeft.compose.store import load_adapter, describe
model, folder, inputs = sys.argv[1:4]
about = describe(folder)
carrier = attach(load_base(model, kind=about["kind"]), head=about["head"], labels=about["labels"], attention="eager")
data = load_file(inputs)
with torch.no_grad():
    logits = load_adapter(carrier, folder)(data["ids"], data["mask"])
print(float((logits - data["logits"]).abs().max()))
"""

LOAD_WITH_PEFT = """
import sys, torch
from safetensors.torch import load_file
import transformers
{first}
from peft import PeftModel
model, folder, inputs, auto, labels = sys.argv[1:6]
kwargs = {{"num_labels": int(labels)}} if int(labels) else {{}}
base = getattr(transformers, auto).from_pretrained(model, attn_implementation="eager", **kwargs)
data = load_file(inputs)
adapted = PeftModel.from_pretrained(base, folder).eval()
with torch.no_grad():
    output = adapted(input_ids=data["ids"], attention_mask=data["mask"])
assert ("autopeft" in sys.modules) == {ours}
print(float((output[0] - data["raw"]).abs().max()))
"""


def trained_and_saved(carrier: Carrier, configuration: Configuration, tmp_path: Path) -> tuple[Path, Path]:
    """Train a little, save, and write the logits that a reader must reproduce."""
    adapted = build(carrier, configuration)
    train_steps(adapted)
    save_adapter(adapted, tmp_path / "adapter", meta={"score": 0.5})
    ids, mask = rows()
    with torch.no_grad():
        raw = adapted.model(input_ids=ids, attention_mask=mask)[0]
    save_file(
        {"ids": ids, "mask": mask, "logits": logits_of(adapted), "raw": raw.contiguous()},
        tmp_path / "inputs.safetensors",
    )
    return tmp_path / "adapter", tmp_path / "inputs.safetensors"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_reload_is_exact(folders: dict[str, Path], name: str, seed: int, tmp_path: Path) -> None:
    head = ("cls", "mean", "stock")[seed % 3] if name == "bert" else "lm"
    carrier = carrier_of(folders[name], KINDS[name], head)
    configuration = arbitrary(carrier.modules, 100 + seed, dropout=0.1)
    adapted = build(carrier, configuration)
    train_steps(adapted)
    weights = save_adapter(adapted, tmp_path / "adapter", meta={})
    again = load_adapter(carrier, tmp_path / "adapter")
    assert torch.equal(logits_of(again), logits_of(adapted))
    assert again.configuration == configuration
    assert not any(p.requires_grad for p in again.parameters())
    more = load_adapter(carrier, tmp_path / "adapter", trainable=True)
    assert {n for n, p in more.named_parameters() if p.requires_grad} == set(adapted.trained())
    assert save_adapter(more, tmp_path / "again", meta={}) == weights
    train_steps(more)
    assert save_adapter(more, tmp_path / "again", meta={}) != weights
    assert describe(tmp_path / "adapter")["weights"] == weights


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_fresh_process_reads_the_same_logits(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    carrier = carrier_of(folders[name], KINDS[name], "mean" if name == "bert" else "lm")
    configuration = uniform(carrier.modules, "bias", "lora", "ia3", "serial", "parallel", "prefix")
    adapter, inputs = trained_and_saved(carrier, configuration, tmp_path)
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "AUTOPEFT_HYBRID"
    assert float(run_script(LOAD_OURS, folders[name], adapter, inputs)) == 0.0
    auto = "AutoModel" if name == "bert" else "AutoModelForCausalLM"
    script = LOAD_WITH_PEFT.format(first="import autopeft.hybrid", ours=True)
    assert float(run_script(script, folders[name], adapter, inputs, auto, 0)) == 0.0


LOWERED = [
    ("bert", "stock", "lora", "LORA", "AutoModelForSequenceClassification"),
    ("bert", "stock", "dora", "LORA", "AutoModelForSequenceClassification"),
    ("bert", "stock", "ia3", "IA3", "AutoModelForSequenceClassification"),
    ("bert", "stock", "layernorm", "LN_TUNING", "AutoModelForSequenceClassification"),
    ("bert", "mean", "lora", "LORA", "AutoModel"),
    ("llama", "lm", "lora", "LORA", "AutoModelForCausalLM"),
    ("llama", "lm", "ia3", "IA3", "AutoModelForCausalLM"),
    ("gpt2", "lm", "lora", "LORA", "AutoModelForCausalLM"),
    ("gpt2", "lm", "ia3", "IA3", "AutoModelForCausalLM"),
]


def mixed_sizes(carrier: Carrier, method: str) -> Configuration:
    """Ranks and scales that differ from module to module, on some modules only; more than twenty of them."""
    modules = carrier.modules
    sites = {}
    for index, (name, parts) in enumerate(uniform(modules, method).sites):
        knobs = dict(parts[0].knobs)
        if "r" in knobs:
            knobs |= {"r": (1, 2, 3, 4)[index % 4], "scale": (0.3, 1.0, 2.5)[index % 3]}
        if index != 5:
            sites[name] = [Part.of(method, knobs)]
    return Configuration.of(sites, training(0.1))


@pytest.mark.parametrize(("name", "head", "method", "peft_type", "auto"), LOWERED)
def test_lowered_folders_need_only_peft(
    folders: dict[str, Path], name: str, head: str, method: str, peft_type: str, auto: str, tmp_path: Path
) -> None:
    carrier = carrier_of(folders[name], KINDS[name], head)
    configuration = mixed_sizes(carrier, method)
    adapter, inputs = trained_and_saved(carrier, configuration, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == peft_type
    assert set(config["target_modules"]) == {site for site, _ in configuration.sites}
    script = LOAD_WITH_PEFT.format(first="", ours=False)
    labels = 3 if head == "stock" else 0
    assert float(run_without_autopeft(script, folders[name], adapter, inputs, auto, labels)) == 0.0


@pytest.mark.parametrize(
    "methods", [("lora", "ia3"), ("serial",), ("parallel",), ("prefix",), ("bias",), ("bias", "lora")]
)
def test_what_peft_cannot_say_is_not_lowered(bert: Carrier, methods: tuple[str, ...]) -> None:
    assert lower(uniform(bert.modules, *methods), bert) is None


def test_lora_and_dora_together_are_not_lowered(bert: Carrier) -> None:
    modules = bert.modules
    query, value = modules.select(["query"])[0].name, modules.select(["value"])[0].name
    knobs = {"r": 2, "scale": 1.0}
    mixed = Configuration.of({query: [Part.of("lora", knobs)], value: [Part.of("dora", knobs)]}, training())
    assert lower(mixed, bert) is None


def test_no_local_path_in_any_file(folders: dict[str, Path], tmp_path: Path) -> None:
    for number, methods in enumerate((("lora",), ("lora", "prefix"))):
        carrier = carrier_of(folders["bert"], "sequence_classification", "stock")
        save_adapter(build(carrier, uniform(carrier.modules, *methods)), tmp_path / str(number), meta={})
        for file in (tmp_path / str(number)).iterdir():
            content = file.read_bytes()
            assert str(tmp_path).encode() not in content
            assert str(folders["bert"]).encode() not in content
        config = json.loads((tmp_path / str(number) / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == carrier.identity.id
        assert config["inference_mode"]


def test_real_model(minilm: Path, tmp_path: Path) -> None:
    carrier = carrier_of(minilm, "sequence_classification", "mean", attention="sdpa")
    before = checksum(carrier)
    adapted = build(carrier, uniform(carrier.modules, "bias", "lora", "serial", "prefix", dropout=0.1))
    train_steps(adapted, steps=2)
    save_adapter(adapted, tmp_path / "adapter", meta={})
    assert torch.equal(logits_of(load_adapter(carrier, tmp_path / "adapter")), logits_of(adapted))
    assert checksum(carrier) == before


def test_head_only_adapters(bert: Carrier, tmp_path: Path) -> None:
    adapted = build(bert, Configuration.of({}, training()))
    train_steps(adapted)
    save_adapter(adapted, tmp_path / "head", meta={"rows": 12})
    assert not (tmp_path / "head" / "adapter_config.json").exists()
    assert torch.equal(logits_of(load_adapter(bert, tmp_path / "head")), logits_of(adapted))
    assert describe(tmp_path / "head")["meta"] == {"rows": 12}


@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "adapter_config.json", "head.safetensors", "autopeft.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed(bert: Carrier, tmp_path: Path, file: str, damage: str) -> None:
    folder = tmp_path / "adapter"
    save_adapter(build(bert, uniform(bert.modules, "lora", "prefix")), folder, meta={})
    path = folder / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        path.write_bytes(bytes(content))
    elif damage == "cut":
        path.write_bytes(bytes(content[: len(content) // 2]))
    else:
        path.unlink()
    with pytest.raises(DamagedFile) as caught:
        load_adapter(bert, folder)
    assert [Path(problem.value).name for problem in caught.value.problems] == [file]


def test_peft_may_write_over_a_folder_of_ours(bert: Carrier, folders: dict[str, Path], tmp_path: Path) -> None:
    save_adapter(build(bert, uniform(bert.modules, "lora", "prefix")), tmp_path / "a", meta={})
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(folders["bert"]), tmp_path / "a", is_trainable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(folders["bert"]), tmp_path / "a")
    ids, mask = rows()
    with torch.no_grad():
        assert torch.equal(model.eval()(ids, mask)[0], again.eval()(ids, mask)[0])


def test_a_folder_without_all_tensors_is_refused_by_peft_too(
    bert: Carrier, folders: dict[str, Path], tmp_path: Path
) -> None:
    save_adapter(build(bert, uniform(bert.modules, "lora", "serial")), tmp_path / "a", meta={})
    # As from a hub: nothing to check the files by.
    (tmp_path / "a" / "manifest.json").unlink()
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    lost = [name for name in tensors if "serial" in name]
    save_file({n: t for n, t in tensors.items() if n not in lost}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"lacks {len(lost)} of its tensors"):
        PeftModel.from_pretrained(AutoModel.from_pretrained(folders["bert"]), tmp_path / "a")


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_is_noticed_through_peft_as_well(
    bert: Carrier, folders: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "adapter"
    save_adapter(build(bert, uniform(bert.modules, "lora", "prefix")), folder, meta={})
    base = AutoModel.from_pretrained(folders["bert"])
    PeftModel.from_pretrained(base, folder)
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content) if damage == "flip" else bytes(content[: len(content) // 2]))
    with pytest.raises(DamagedFile, match=r"adapter_model\.safetensors"):
        PeftModel.from_pretrained(AutoModel.from_pretrained(folders["bert"]), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [name for name, row in METHODS.items() if row.peft_type and row.unsearchable is None]
)
def test_other_signs_of_singular_vectors_change_nothing(
    bert: Carrier, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ between machines: what is decomposed when an adapter is built must be stored, or not matter."""
    configuration = alone(bert.modules, method)
    if not configuration.sites:
        pytest.skip(f"{method} has no place in a BERT")
    adapted = build(bert, configuration)
    train_steps(adapted)
    save_adapter(adapted, tmp_path / "adapter", meta={})
    svd = torch.linalg.svd

    def other(matrix: torch.Tensor, full_matrices: bool = True, **more: object) -> object:
        left, values, right = svd(matrix, full_matrices=full_matrices, **more)
        signs = torch.ones(values.shape[-1])
        signs[::2] = -1
        left[..., : len(signs)] *= signs
        right[..., : len(signs), :] *= signs.unsqueeze(-1)
        return torch.return_types.linalg_svd((left, values, right))

    qr, eigh = torch.linalg.qr, torch.linalg.eigh

    def negated(columns: torch.Tensor) -> torch.Tensor:
        signs = torch.ones(columns.shape[-1], dtype=columns.dtype)
        signs[::2] = -1
        return signs

    def other_qr(matrix: torch.Tensor, mode: str = "reduced") -> object:
        basis, rest = qr(matrix, mode=mode)
        return torch.return_types.linalg_qr((basis * negated(basis), rest * negated(basis).unsqueeze(-1)))

    def other_eigh(matrix: torch.Tensor, **more: object) -> object:
        values, vectors = eigh(matrix, **more)
        return torch.return_types.linalg_eigh((values, vectors * negated(vectors)))

    monkeypatch.setattr(torch.linalg, "svd", other)
    monkeypatch.setattr(torch.linalg, "qr", other_qr)
    monkeypatch.setattr(torch.linalg, "eigh", other_eigh)
    assert torch.equal(logits_of(load_adapter(bert, tmp_path / "adapter")), logits_of(adapted))


def test_a_manifest_cannot_lead_out_of_its_folder(bert: Carrier, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(build(bert, uniform(bert.modules, "lora")), folder, meta={})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../inputs"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedFile):
        load_adapter(bert, folder)


def test_tensors_of_another_shape_of_adapter_are_refused(bert: Carrier, tmp_path: Path) -> None:
    """A folder whose checksums are right and whose content is not: tensors that no part asks for."""
    import hashlib

    folder = tmp_path / "adapter"
    save_adapter(build(bert, uniform(bert.modules, "lora")), folder, meta={})
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "adapter_model.safetensors").read_bytes()
    manifest["files"]["adapter_model.safetensors"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedFile, match="does not hold the tensors"):
        load_adapter(bert, folder)


def test_another_base_head_or_kind_is_refused(bert: Carrier, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(build(bert, uniform(bert.modules, "lora")), folder, meta={})
    other = carrier_of(folders["gpt2"], "sequence_classification", "cls")
    with pytest.raises(InputError) as caught:
        load_adapter(other, folder)
    said = " ".join(problem.rule for problem in caught.value.problems)
    assert "another base model" in said
    assert "head 'mean', not 'cls'" in said
    with pytest.raises(InputError, match="is no folder"):
        load_adapter(bert, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        load_adapter(bert, tmp_path / "empty")


def test_saving_again_replaces_and_leaves_no_litter(bert: Carrier, tmp_path: Path) -> None:
    modules = bert.modules
    save_adapter(build(bert, uniform(modules, "prefix")), tmp_path / "adapter", meta={})
    save_adapter(build(bert, uniform(modules, "lora")), tmp_path / "adapter", meta={})
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert load_adapter(bert, tmp_path / "adapter").configuration.methods == ("lora",)


def test_a_failed_save_keeps_what_was_there(bert: Carrier, tmp_path: Path) -> None:
    modules = bert.modules
    weights = save_adapter(build(bert, uniform(modules, "lora")), tmp_path / "adapter", meta={})
    with pytest.raises(ValueError, match="JSON compliant"):
        save_adapter(build(bert, uniform(modules, "lora"), seed=9), tmp_path / "adapter", meta={"score": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert describe(tmp_path / "adapter")["weights"] == weights
