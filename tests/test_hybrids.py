"""The contract of the table of methods once more, for two hundred random mixtures of all hosted methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compose_models import (
    arbitrary,
    base_logits,
    build,
    carrier_of,
    gradients_reach,
    logits_of,
    rows,
    run_script,
    save_tiny,
    shake,
    train_steps,
    training,
)
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from test_methods import READ_ALL, WITH_AUTOPEFT

from autopeft.compose.adapt import AdaptedModel, hybrid_config
from autopeft.compose.base import Carrier, checksum
from autopeft.compose.store import save_adapter
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration

pytestmark = pytest.mark.slow

PART = 50
PARTS = {"bert": range(0, 100, PART), "llama": range(100, 200, PART)}
CASES = [(name, first) for name, firsts in PARTS.items() for first in firsts]
KINDS = {"bert": ("sequence_classification", "mean"), "llama": ("causal_lm", "lm")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(name, root / name) for name in KINDS}


def carrier_for(folders: dict[str, Path], name: str, dtype: str = "float32") -> Carrier:
    return carrier_of(folders[name], *KINDS[name], dtype=dtype)


@pytest.mark.parametrize(("name", "first"), CASES)
def test_they_are_what_they_say_and_are_read_in_a_fresh_process(
    folders: dict[str, Path], name: str, first: int, tmp_path: Path
) -> None:
    carrier = carrier_for(folders, name)
    modules = module_map(carrier.model)
    before = checksum(carrier)
    ids, mask = rows()
    tensors = {"ids": ids, "mask": mask}
    for seed in range(first, first + PART):
        configuration = arbitrary(modules, seed, dropout=0.1 * (seed % 2))
        adapted = build(carrier, configuration)
        assert adapted.adapter_params == configuration.adapter_params(modules)
        bare = base_logits(carrier, adapted)
        if all(METHODS[method].identity for method in configuration.methods):
            torch.testing.assert_close(logits_of(adapted), bare, atol=2e-5, rtol=1e-5)
        start = {key: p.detach().clone() for key, p in adapted.trained().items()}
        reached = gradients_reach(adapted)
        train_steps(adapted)
        assert [key for key, p in adapted.trained().items() if key in reached and torch.equal(p, start[key])] == []
        with adapted.model.disable_adapter():
            assert torch.equal(logits_of(adapted), base_logits(carrier, adapted))
        save_adapter(adapted, tmp_path / str(seed), meta={})
        tensors[str(seed)] = logits_of(adapted).contiguous()
    assert checksum(carrier) == before
    save_file(tensors, tmp_path / "inputs.safetensors")
    script = READ_ALL.format(first=WITH_AUTOPEFT)
    found = json.loads(run_script(script, folders[name], tmp_path, KINDS[name][0]))
    assert found == {str(seed): 0.0 for seed in range(first, first + PART)}


@pytest.mark.parametrize(("name", "first"), CASES)
def test_they_train_on_a_bfloat16_base(folders: dict[str, Path], name: str, first: int) -> None:
    carrier = carrier_for(folders, name, "bfloat16")
    before = checksum(carrier)
    for seed in range(first, first + PART):
        adapted = build(carrier, arbitrary(module_map(carrier.model), seed))
        start = {key: p.detach().clone() for key, p in adapted.trained().items()}
        train_steps(adapted, autocast=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(logits_of(adapted)).all()
        moved = [key for key, p in adapted.trained().items() if not torch.equal(p, start[key])]
        assert any(not key.startswith("head") for key in moved)
    assert checksum(carrier) == before


@pytest.mark.parametrize(("name", "first"), CASES)
def test_they_merge_exactly_or_say_what_cannot_be_merged(folders: dict[str, Path], name: str, first: int) -> None:
    merged = 0
    for seed in range(first, first + PART):
        # Merging may write into the base.
        carrier = carrier_for(folders, name)
        modules = module_map(carrier.model)
        whole = arbitrary(modules, seed)
        if not all(METHODS[method].mergeable for method in whole.methods):
            adapted = build(carrier, whole)
            with pytest.raises(ValueError, match="cannot be merged, and nothing was changed"):
                adapted.model.merge_and_unload()
        # Also what is left of it when only mergeable parts are kept.
        sites = {
            site: [part for part in parts if METHODS[part.method].mergeable]
            for site, parts in whole.sites
            if any(METHODS[part.method].mergeable for part in parts)
        }
        if not sites:
            continue
        adapted = build(carrier, Configuration.of(sites, training()))
        train_steps(adapted)
        expected = logits_of(adapted)
        plain = AdaptedModel(carrier, Configuration((), training()), adapted.model.merge_and_unload(), adapted.head)
        difference = (logits_of(plain) - expected).abs().max() / expected.abs().max()
        assert float(difference) < 1e-5, (seed, sites)
        merged += 1
    assert merged > PART // 2


@pytest.mark.parametrize(("name", "first"), CASES)
def test_two_of_them_in_one_model_switch_exactly(
    folders: dict[str, Path], name: str, first: int, tmp_path: Path
) -> None:
    def fresh() -> Carrier:
        return carrier_for(folders, name)

    def logits(model: PeftModel) -> torch.Tensor:
        ids, mask = rows()
        more = {"use_cache": False} if name == "llama" else {}
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, **more)[0]

    for seed in range(first, first + PART, 2):
        expected = []
        for number in (0, 1):
            carrier = fresh()
            modules = module_map(carrier.model)
            model = get_peft_model(carrier.model, hybrid_config(carrier, arbitrary(modules, seed + number), modules))
            shake(model, seed + number)
            model.eval()
            expected.append(logits(model))
            model.save_pretrained(tmp_path / f"{seed}-{number}")
        both = PeftModel.from_pretrained(fresh().model, str(tmp_path / f"{seed}-0"), adapter_name="first").eval()
        both.load_adapter(str(tmp_path / f"{seed}-1"), adapter_name="second")
        for adapter, wanted in (("first", expected[0]), ("second", expected[1]), ("first", expected[0])):
            both.set_adapter(adapter)
            assert torch.equal(logits(both), wanted), (seed, adapter)
