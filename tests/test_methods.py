"""The contract of the table of methods: every row that a search may choose is built, trained, stored and read back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compose_models import (
    alone,
    base_logits,
    build,
    carrier_of,
    config_for,
    gradients_reach,
    logits_of,
    loss_of,
    rows,
    shake,
    train_steps,
    training,
)
from fresh import run_script, run_without_autopeft
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel, ElectraConfig

from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.base import Carrier, checksum
from autopeft.compose.lower import lower
from autopeft.compose.store import load_adapter, save_adapter
from autopeft.cost.step import StepTensors, answer_logits
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part
from autopeft.space.example import BERT_BASE, parameters

KINDS = {"bert": "sequence_classification", "llama": "causal_lm", "gpt2": "causal_lm"}
HOSTED = [name for name, method in METHODS.items() if method.hosted]
SEARCHABLE = [name for name, method in METHODS.items() if method.unsearchable is None]
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning", "cpt")
NO_PLACE = {
    # GPT-2's weights are stored the other way round, and these layers of peft read them as torch stores them.
    "gpt2": {
        *("loha", "lokr", "delora", "miss", "glora", "oft", "boft", "hra", "psoft", "road", "c3a", "peanut"),
        *("beft", "shira", "supertuning", "osf", "lily", "unilora", "frod", "adamss"),
    },
    # No biases.
    "llama": {"bias", "ssf", "beft"},
    # No output layer over the vocabulary.
    "bert": {"cpt"},
}


@pytest.fixture(scope="module")
def rounded(folders: dict[str, Path]) -> Carrier:
    """The encoder in bfloat16."""
    return carrier_of(folders["bert"], KINDS["bert"], "mean", dtype="bfloat16")


@pytest.fixture(scope="module")
def bare(folders: dict[str, Path]) -> AutoModel:
    """The encoder as transformers gives it."""
    return AutoModel.from_pretrained(folders["bert"], attn_implementation="eager").eval()


def test_the_example_is_bert_base() -> None:
    with torch.device("meta"):
        modules = module_map(BertForMaskedLM(BertConfig()))
        assert sum(p.numel() for p in BertModel(BertConfig()).parameters()) == BERT_BASE.base_params
    for name in SEARCHABLE:
        row = METHODS[name]
        sites = [modules] if row.whole else [site for site in modules.sites if row.fits(site)]
        found = parameters(row)
        assert found
        for size, count in found.items():
            assert count == sum(row.count(site, row.knobs(site, size)) for site in sites), (name, size)


def test_prompts_are_not_offered_where_embeddings_are_narrower_than_the_model() -> None:
    narrow = ElectraConfig(
        embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    modules = module_map(AutoModel.from_config(narrow))
    allowed = {name for name in SEARCHABLE if METHODS[name].whole and METHODS[name].allows(modules)}
    assert not allowed & {"prompt_tuning", "p_tuning", "cpt"}
    # It gives keys and values to the layers themselves.
    assert {"prefix_tuning", "vera"} <= allowed


@pytest.mark.parametrize("method", SEARCHABLE)
@pytest.mark.parametrize("name", KINDS)
def test_it_is_recomputed_exactly_where_the_table_says_so(carriers: dict[str, Carrier], name: str, method: str) -> None:
    carrier = carriers[name]
    configuration = alone(carrier.modules, method, dropout=0.1)
    if not configuration.sites:
        pytest.skip(f"{method} has no place in {name}")
    gradients: list[dict[str, torch.Tensor]] = []
    for recompute in (False, True):
        adapted = build(carrier, configuration)
        shake(adapted.model)
        if recompute:
            adapted.checkpoint_blocks()
        adapted.train()
        torch.manual_seed(1)
        try:
            loss_of(adapted).backward()
        except (RuntimeError, ValueError):
            assert recompute
            assert not METHODS[method].recomputable
            return
        gradients.append({key: p.grad for key, p in adapted.trained().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert METHODS[method].recomputable == all(torch.equal(gradients[0][k], gradients[1][k]) for k in gradients[0])


@pytest.mark.parametrize("method", SEARCHABLE)
@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_the_table_says(carriers: dict[str, Carrier], name: str, method: str, tmp_path: Path) -> None:
    carrier, row = carriers[name], METHODS[method]
    configuration = alone(carrier.modules, method, dropout=0.1)
    assert bool(configuration.sites) == (method not in NO_PLACE[name])
    if not configuration.sites:
        pytest.skip(f"{method} has no place in {name}")
    before = checksum(carrier)
    # Building it compares the formula with what is trainable, and the modules with what was asked for.
    adapted = build(carrier, configuration)
    assert adapted.adapter_params > 0
    assert {p.dtype for p in adapted.trained().values()} == {torch.float32}
    bare = base_logits(carrier, adapted)
    same = torch.allclose(logits_of(adapted), bare, atol=2e-6 * float(bare.abs().max()) + 1e-7, rtol=1e-5)
    assert same == row.identity
    start = {key: p.detach().clone() for key, p in adapted.trained().items()}
    reached = gradients_reach(adapted)
    train_steps(adapted)
    still = {key for key, p in adapted.trained().items() if torch.equal(p, start[key])}
    assert not still & reached
    # What is added to all keys alike has no effect: a bias of the keys, for example.
    assert len(reached) >= 0.8 * len(start)
    assert checksum(carrier) == before
    after = logits_of(adapted)
    if method not in PROMPTS:
        with adapted.model.disable_adapter():
            off = logits_of(adapted)
        assert torch.equal(off, base_logits(carrier, adapted))
    weights = save_adapter(adapted, tmp_path / "adapter", meta={})
    again = load_adapter(carrier, tmp_path / "adapter")
    assert torch.equal(logits_of(again), after)
    assert again.adapter_params == adapted.adapter_params
    assert save_adapter(again, tmp_path / "again", meta={}) == weights


@pytest.mark.parametrize("method", SEARCHABLE)
def test_answers_are_selected_before_the_output_layer_exactly(carriers: dict[str, Carrier], method: str) -> None:
    carrier = carriers["llama"]
    configuration = alone(carrier.modules, method)
    if not configuration.sites:
        pytest.skip(f"{method} has no place in llama")
    adapted = build(carrier, configuration)
    ids, mask = rows()
    positions = torch.tensor([2, 5, 9 + 1, 2 * 9 + 7])
    batch = StepTensors(ids, mask, None, ids.flatten()[positions], positions)
    with torch.no_grad():
        selected = answer_logits(adapted, batch)
        whole = adapted(ids, mask)
    torch.testing.assert_close(selected, whole.flatten(0, 1)[positions], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", SEARCHABLE)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_merging_is_exact_where_claimed_and_refused_elsewhere(folders: dict[str, Path], name: str, method: str) -> None:
    # Merging may write into the base: each test has its own.
    carrier = carrier_of(folders[name], KINDS[name], "mean" if name == "bert" else "lm")
    configuration = alone(carrier.modules, method)
    if not configuration.sites:
        pytest.skip(f"{method} has no place in {name}")
    row = METHODS[method]
    assert row.mergeable == ("merged" in row.targets)
    adapted = build(carrier, configuration)
    train_steps(adapted)
    expected = logits_of(adapted)
    if not row.mergeable:
        # Prompts have nothing to merge, and peft no such verb for them.
        says = "merge_and_unload" if method in PROMPTS else "not supported for Lily" if method == "lily" else method
        with pytest.raises((ValueError, NotImplementedError, AttributeError), match=says):
            adapted.model.merge_and_unload()
        assert torch.equal(logits_of(adapted), expected)
        return
    merged = adapted.model.merge_and_unload()
    plain = AdaptedModel(carrier, Configuration((), training()), merged, adapted.head)
    difference = (logits_of(plain) - expected).abs().max() / expected.abs().max()
    assert float(difference) < 1e-5
    assert {type(module) for module in merged.modules()} == {type(module) for module in carrier.model.modules()}


@pytest.mark.parametrize("method", HOSTED)
def test_the_output_of_the_frozen_module_can_be_shared_where_claimed(bert: Carrier, method: str) -> None:
    """Then the module is asked once, with what its layer was asked with."""
    adapted = build(bert, alone(bert.modules, method))
    train_steps(adapted)
    given: dict[torch.nn.Module, list[torch.Tensor]] = {}
    asked: dict[torch.nn.Module, list[torch.Tensor]] = {}
    for layer in adapted.model.modules():
        if isinstance(layer, BaseTunerLayer):
            frozen = layer.get_base_layer()
            layer.register_forward_pre_hook(lambda _, args, key=frozen: given.setdefault(key, []).append(args[0]))
            frozen.register_forward_pre_hook(lambda key, args: asked.setdefault(key, []).append(args[0]))
    logits_of(adapted)
    same = all(
        len(asked.get(frozen, [])) == 1 and torch.equal(asked[frozen][0], inputs[0]) for frozen, inputs in given.items()
    )
    assert given
    assert (METHODS[method].base == "shared") == same


@pytest.mark.parametrize("method", SEARCHABLE)
def test_it_trains_on_a_bfloat16_base(rounded: Carrier, method: str, tmp_path: Path) -> None:
    carrier = rounded
    configuration = alone(carrier.modules, method)
    if not configuration.sites:
        pytest.skip(f"{method} has no place in bert")
    adapted = build(carrier, configuration)
    start = {key: p.detach().clone() for key, p in adapted.trained().items()}
    before = checksum(carrier)
    train_steps(adapted, autocast=True)
    assert any(not torch.equal(p, start[key]) for key, p in adapted.trained().items() if not key.startswith("head"))
    save_adapter(adapted, tmp_path / "adapter", meta={})
    again = load_adapter(carrier, tmp_path / "adapter")
    with torch.autocast("cpu", torch.bfloat16):
        after = logits_of(adapted)
    assert torch.isfinite(after).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits_of(again), after)
    assert checksum(carrier) == before


@pytest.mark.parametrize("method", HOSTED)
def test_two_adapters_of_a_method_switch_exactly(bare: AutoModel, method: str, tmp_path: Path) -> None:
    def base() -> AutoModel:
        return copy.deepcopy(bare)

    def hidden(model: PeftModel) -> torch.Tensor:
        ids, mask = rows()
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask).last_hidden_state

    expected = []
    for number in (0, 1):
        model = get_peft_model(base(), config_for(base(), method, size=number))
        shake(model, number)
        expected.append(hidden(model))
        model.save_pretrained(tmp_path / str(number))
    both = PeftModel.from_pretrained(base(), str(tmp_path / "0"), adapter_name="first")
    both.load_adapter(str(tmp_path / "1"), adapter_name="second")
    for adapter, wanted in (("first", expected[0]), ("second", expected[1]), ("first", expected[0])):
        both.set_adapter(adapter)
        assert torch.equal(hidden(both), wanted)


READ_ALL = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
{first}
model, root, kind = sys.argv[1:4]
data = load_file(Path(root) / "inputs.safetensors")
found = {{}}
for folder in sorted(Path(root).iterdir()):
    if folder.is_dir():
        found[folder.name] = read(model, folder, data)
print(json.dumps(found))
"""
WITH_AUTOPEFT = """
from autopeft.compose.base import attach, load_base
from autopeft.compose.store import load_adapter
base = load_base(sys.argv[1], kind=sys.argv[3])
carrier = attach(base, head="lm", labels=0) if sys.argv[3] == "causal_lm" else attach(base, head="mean", labels=3)

def read(model, folder, data):
    with torch.no_grad():
        logits = load_adapter(carrier, folder)(data["ids"], data["mask"])
    return float((logits - data[folder.name]).abs().max())
"""
WITH_PEFT = """
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM
kind_of_model = AutoModelForCausalLM if sys.argv[3] == "causal_lm" else AutoModel
more = {"use_cache": False} if sys.argv[3] == "causal_lm" else {}

def read(model, folder, data):
    base = kind_of_model.from_pretrained(model, attn_implementation="eager")
    adapted = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        hidden = adapted(input_ids=data["ids"], attention_mask=data["mask"], **more)[0]
    return float((hidden - data[folder.name]).abs().max())
"""


def stored(carrier: Carrier, root: Path, outputs: Callable[[AdaptedModel], torch.Tensor], names: list[str]) -> None:
    """A folder of trained adapters, one for each method, with what a reader must reproduce."""
    ids, mask = rows()
    tensors = {"ids": ids, "mask": mask}
    for method in names:
        adapted = build(carrier, alone(carrier.modules, method))
        train_steps(adapted)
        save_adapter(adapted, root / method, meta={})
        tensors[method] = outputs(adapted).contiguous()
    save_file(tensors, root / "inputs.safetensors")


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_fresh_process_reads_all_of_them(
    carriers: dict[str, Carrier], folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    fitting = [method for method in SEARCHABLE if method not in NO_PLACE[name]]
    stored(carriers[name], tmp_path, logits_of, fitting)
    found = json.loads(run_script(READ_ALL.format(first=WITH_AUTOPEFT), folders[name], tmp_path, KINDS[name]))
    assert found == dict.fromkeys(fitting, 0.0)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_peft_alone_reads_all_that_is_lowered(
    carriers: dict[str, Carrier], folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    carrier = carriers[name]
    modules = carrier.modules
    fitting = [method for method in SEARCHABLE if method not in NO_PLACE[name]]
    lowered = [method for method in fitting if lower(alone(modules, method), carrier) is not None]
    # At one size everywhere; who promises plain peft at any sizes says so by a target.
    assert {method for method in fitting if "peft" in METHODS[method].targets} <= set(lowered)
    assert {method for method in SEARCHABLE if METHODS[method].layer is not None}.isdisjoint(lowered)

    def first(adapted: AdaptedModel) -> torch.Tensor:
        """What the peft model puts out first: hidden states, or the logits of a language model."""
        ids, mask = rows()
        more = {"use_cache": False} if carrier.head == "lm" else {}
        with torch.no_grad():
            return adapted.model(input_ids=ids, attention_mask=mask, **more)[0]

    stored(carrier, tmp_path, first, lowered)
    found = json.loads(run_without_autopeft(READ_ALL.format(first=WITH_PEFT), folders[name], tmp_path, KINDS[name]))
    assert found == dict.fromkeys(lowered, 0.0)


@pytest.mark.parametrize("method", [name for name in HOSTED if "peft" in METHODS[name].targets])
def test_the_target_peft_is_kept_at_any_sizes(carriers: dict[str, Carrier], method: str) -> None:
    modules, row = carriers["bert"].modules, METHODS[method]
    sites = [site for site in modules.sites if row.fits(site)]
    parts = {}
    for number, site in enumerate(sites):
        sizes = row.sizes(site) if row.size else ()
        parts[site.name] = [Part.of(method, row.knobs(site, sizes[number % len(sizes)] if sizes else None))]
    assert lower(Configuration.of(parts, training()), carriers["bert"]) is not None


def test_the_table_is_complete_and_consistent() -> None:
    assert len(METHODS) >= 45
    for name, row in METHODS.items():
        assert row.name == name
        assert row.paper.link.startswith("https://")
        assert row.paper.title
        assert 0 < row.rate.low <= row.rate.default <= row.rate.high
        assert row.hosted == (bool(row.slots) and row.unsearchable is None)
        assert (row.unsearchable is not None) or row.whole or row.slots
        if row.hosted:
            assert (row.layer is None) != (row.peft_type is None)
        for knob, options in row.choices.items():
            assert row.defaults[knob] in options
    from peft import PeftType

    # Every method that peft knows has a row; the layer of one of them is our own.
    rows = {row.peft_type or name.upper() for name, row in METHODS.items()}
    assert rows >= {kind.value for kind in PeftType}
