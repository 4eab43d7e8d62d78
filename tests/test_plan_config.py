"""`plan` for models of which only a config is there, and what it warns of."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import example_search
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import autopeft
from autopeft import catalogue
from autopeft.cli import main
from autopeft.compose.adapt import adapt
from autopeft.compose.base import load_base, meta_carrier
from autopeft.cost.flops import matmul_rate, row_flops
from autopeft.cost.step import StepTensors, compute_loss
from autopeft.data.estimate import estimate
from autopeft.data.read import read
from autopeft.errors import InputError, NothingFeasible
from autopeft.search.division import Division, Speed
from autopeft.search.hours import device_hours, full_seconds, unaffordable
from autopeft.search.prepare import prepare
from autopeft.search.serving import serving_warnings
from autopeft.search.sketch import sketch
from autopeft.space import bind, resolve
from autopeft.space.bound import BoundSpace
from autopeft.spec import Budget, Task
from autopeft.spec.parse import parse_search
from autopeft.trial.workbench import speed_configuration

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}
LLAMA_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}


pytestmark = pytest.mark.usefixtures("few_predictions")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Prompts and answers."""
    folder = tmp_path / "questions"
    folder.mkdir()
    for split, rows in (("train", 60), ("validation", 20), ("test", 20)):
        texts = [(f"{split} question {row}: what is {row} and {row + 1}?", f"It is {row + 1}.") for row in range(rows)]
        lines = [{"prompt": prompt, "response": response} for prompt, response in texts]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config_folder(folder: Path, config: Any) -> Path:
    config.save_pretrained(folder)
    return folder


def planned(model: Path, data: Path, budget: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return autopeft.plan({"model": str(model), "data": str(data)}, budget or {}, **options).to_dict()


def test_a_llama_of_seven_billion_needs_no_weights(tmp_path: Path, questions: Path) -> None:
    folder = config_folder(tmp_path / "llama", LlamaConfig(**LLAMA_7B))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = planned(folder, questions, {"max_adapter_params": "0.5%", "max_time": "8h"}, device_tflops=150.0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert found["model"]["params_with_output_layer"] == 6_738_415_616
    assert found["model"]["base_params"] == 6_738_415_616 - 32_000 * 4096
    assert found["model"]["id"].startswith("config:")
    memory = found["space"]["memory_bytes"]
    # Two bytes a weight, and the buffers of the rotary embedding.
    assert 2 * 6_738_415_616 <= memory["base"] < 2 * 6_738_415_616 + 10_000
    assert memory["base"] < memory["smallest"] <= memory["samples_least"] <= memory["samples_most"]
    assert found["space"]["adapter_params"]["most"] <= 0.005 * found["model"]["base_params"]
    # `ru_maxrss` counts kilobytes.
    assert grown < 1_000_000
    time = found["time"]
    assert (time["workers"], time["speed"]["source"], time["speed"]["achieved_tflops"]) == (1, "estimated", 150.0)
    assert (time["device_hours"], time["device_hours_by"]) == (8.0, "max_time")
    assert "150 TFLOP/s" in time["speed"]["how"]


@pytest.mark.parametrize("as_file", [False, True])
def test_a_plan_is_the_same_as_with_weights(tmp_path: Path, questions: Path, as_file: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**TINY, num_key_value_heads=2)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "whole")
    alone = config_folder(tmp_path / "alone", config)
    given = alone / "config.json" if as_file else alone
    budget = {"max_trials": 4}
    ours = planned(given, questions, budget, device_tflops=0.1)
    assert ours["model"]["params_with_output_layer"] == sum(p.numel() for p in model.parameters())
    # The weights that are there are not looked at either; the tokenizer would be.
    with pytest.raises(InputError, match="tokenizer"):
        planned(tmp_path / "whole", questions, budget, device_tflops=0.1)
    spec = parse_search({"task": {"model": str(given), "data": str(questions)}, "budget": budget})
    sketched = sketch(spec)
    configuration = speed_configuration(sketched.modules("lm"), "causal_lm")
    predicted = sketched.memory("lm").predict(configuration)
    base = load_base(tmp_path / "whole", kind="causal_lm", dtype=sketched.precision)
    real = replace(sketched, base=base)
    assert real.memory("lm").predict(configuration) == predicted
    assert real.memory("lm").base_bytes() == sketched.memory("lm").base_bytes()
    assert real.modules("lm") == sketched.modules("lm")


def test_a_config_of_an_encoder(tmp_path: Path, tiny_reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.search.preview.PREDICTED_SITES", 80)
    folder = config_folder(tmp_path / "bert", BertConfig(**TINY))
    found = planned(folder, tiny_reviews, workers=3)
    assert found["task"]["kind"] == "sequence_classification"
    assert found["model"]["base_params"] == sum(p.numel() for p in BertModel(BertConfig(**TINY)).parameters())
    assert found["space"]["memory_predictions"] > 4
    assert found["time"]["workers"] == 3
    assert found["time"]["device_hours_by"] == "trials"
    assert any("lengths are estimated" in note for note in found["task"]["notes"])
    assert any("our own (mean or cls)" in warning for warning in found["warnings"])


def test_a_search_needs_weights(tmp_path: Path, tiny_reviews: Path) -> None:
    folder = config_folder(tmp_path / "bert", BertConfig(**TINY))
    for model in (folder, folder / "config.json"):
        with pytest.raises(InputError, match="no \\*.safetensors weights") as caught:
            prepare(parse_search({"task": {"model": str(model), "data": str(tiny_reviews)}}))
        assert [problem.field for problem in caught.value.problems] == ["task.model"]
        assert "autopeft plan" in caught.value.problems[0].next_step


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "no-such-model"}, "does not know"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "code that came with it"),
        ({"hidden_size": "wide"}, "no model can be built"),
        ({"num_hidden_layers": 0}, "no stack of transformer blocks"),
        ({"hidden_size": 63}, "no model can be built"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path: Path, tiny_reviews: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "made.json"
    path.write_text(json.dumps({**BertConfig(**TINY).to_dict(), **change}))
    with pytest.raises(InputError, match=words):
        planned(path, tiny_reviews)


@pytest.mark.parametrize("value", ["fast", "0", "-3", "nan", "inf"])
def test_the_device_must_have_a_rate(
    tmp_path: Path, tiny_reviews: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    folder = config_folder(tmp_path / "bert", BertConfig(**TINY))
    assert main(["plan", "--model", str(folder), "--data", str(tiny_reviews), f"--device-tflops={value}"]) == 2
    assert "TFLOP/s" in capsys.readouterr().err


def test_it_fits_a_terminal(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = config_folder(tmp_path / "llama", LlamaConfig(**TINY))
    given = ["plan", "--model", str(folder), "--data", str(questions), "--max-time", "1m", "--device-tflops", "1e-6"]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("warning: ")
    assert "speed: source" in text
    assert "The time is too short" in " ".join(text.split())


@pytest.mark.parametrize("make", [lambda: LlamaConfig(**TINY), lambda: BertConfig(**TINY)], ids=["llama", "bert"])
def test_arithmetic_agrees_with_the_operations(make: Callable[[], Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = make().to_dict()
    lm = config["model_type"] == "llama"
    kind, head = ("causal_lm", "lm") if lm else ("sequence_classification", "mean")
    carrier = meta_carrier(config, kind=kind, head=head, labels=0 if lm else 2)
    modules = carrier.modules
    configuration = speed_configuration(modules, kind)
    rows, length, answers = 2, 40, 10
    model = adapt(carrier, configuration, modules, seed=0).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    ids = torch.zeros(rows, length, dtype=torch.int64)
    labels = torch.zeros(rows * answers if lm else rows, dtype=torch.int64)
    batch = StepTensors(ids, torch.ones_like(ids), None, labels, labels if lm else None)
    with FlopCounterMode(display=False) as counted:
        loss = compute_loss(model, batch, kind, None)
        forward = counted.get_total_flops()
        loss.backward()
    params = configuration.adapter_params(modules)
    wanted = row_flops(
        modules, [length] * rows, adapter_params=params, vocabulary=300 if lm else 0, answers=answers if lm else 0
    )
    assert forward / rows == pytest.approx(wanted.forward + 2 * params * length, rel=0.05)
    # The lowest block needs no gradients for what it reads; that is all that the formula has too much.
    assert counted.get_total_flops() / rows == pytest.approx(wanted.train, rel=0.15)


def test_the_rate_is_that_of_a_product() -> None:
    ticks = iter(range(1000))
    assert matmul_rate(64, torch.float32, clock=lambda: 0.5 * next(ticks)) == 2 * 512 * 64 * 64 / 0.5


def test_estimated_rows(questions: Path, tiny_reviews: Path) -> None:
    raw = read(Task(model="m", data=str(questions)), seed=0)
    data, notes = estimate(raw, max_length=None, model_max=None)
    split = data.splits["train"]
    first = raw.splits["train"].to_pylist()[0]
    assert split.lengths[0] == round(len(first["prompt"]) / 4) + round(len(first["response"]) / 4) + 2
    assert split.answer_from is not None
    assert split.lengths[0] - split.answer_from[0] == round(len(first["response"]) / 4)
    assert data.max_length % 8 == 0
    assert "estimated" in notes[0]
    short, _ = estimate(raw, max_length=8, model_max=128)
    assert short.splits["train"].lengths.max() == 8
    assert np.all(short.splits["train"].answer_from >= 1)  # type: ignore[operator]
    for length in (4, 200):
        with pytest.raises(InputError, match="max_length"):
            estimate(raw, max_length=length, model_max=128)
    pairs, _ = estimate(read(Task(model="m", data=str(tiny_reviews)), seed=0), max_length=None, model_max=None)
    assert pairs.splits["train"].answer_from is None


def division(**changes: Any) -> Division:
    given: dict[str, Any] = {
        "max_trials": 9,
        "rung_evaluated": 100,
        "final_evaluated": 200,
        "explore_until": 1000.0,
        "confirm_until": 1600.0,
        "deadline": 1800.0,
        "speed": Speed(train=0.01, evaluate=0.005),
    }
    return replace(example_search.division(), **{**given, **changes})


def test_device_hours() -> None:
    full = 9000 * 0.01 + 200 * 0.005
    assert full_seconds(division()) == full
    rungs = 9 * (10.0 + 0.5) + 3 * (20.0 + 0.5) + (60.0 + 1.0)
    trials = (rungs + 6 * full + 2 * 10.0) / 3600
    found = device_hours(division(), Budget(max_trials=9), 3.0)
    assert found["device_hours"] == pytest.approx(trials)
    assert (found["device_hours_by"], found["trials_counted"]) == ("trials", 9)
    assert found["device_hours_of_a_full_training"] == full / 3600
    tighter = device_hours(division(), Budget(max_trials=9, max_time=100.0), 3.0)
    assert (tighter["device_hours"], tighter["device_hours_by"]) == (200 / 3600, "max_time")
    busy = device_hours(division(max_trials=None), Budget(max_compute=50.0, max_time=100.0), 3.0)
    assert (busy["device_hours"], busy["device_hours_by"]) == (50 / 3600, "max_compute")


def test_time_that_cannot_pay_for_the_finalists_is_told() -> None:
    assert unaffordable(division()) == []
    assert unaffordable(division(explore_until=None, confirm_until=None, deadline=None)) == []
    (told,) = unaffordable(division(speed=Speed(train=1.0, evaluate=0.005)))
    assert "9,000 rows" in told


def bound_llama(methods: list[str], target: str = "any") -> BoundSpace:
    modules = meta_carrier(LlamaConfig(**TINY).to_dict(), kind="causal_lm", head="lm").modules
    values = resolve(catalogue.read("spaces", "hybrid"), [("space.methods", methods)])
    return bind(values, modules, kind="causal_lm", target=target)


def test_what_nothing_serves_is_told() -> None:
    def warned(methods: list[str], target: str = "any") -> list[str]:
        return serving_warnings(bound_llama(methods, target), kind="causal_lm", target=target, heads=("lm",))

    (none,) = warned(["serial", "parallel"])
    assert none.startswith("Nothing could serve the result")
    assert "--space lora --target vllm" in none
    (some,) = warned(["lora", "parallel"])
    assert "may hold parallel, which only autopeft.load serves" in some
    assert "--target vllm or --target peft or --target merged" in some
    assert warned(["lora"]) == []
    assert warned(["lora", "parallel"], "vllm") == []
    with pytest.raises(NothingFeasible, match="Use another target") as caught:
        warned(["serial", "parallel"], "vllm")
    assert caught.value.binds == "target"


def test_a_head_that_nothing_else_serves_is_told() -> None:
    bound = bound_llama(["lora"])

    def warned(*heads: str, target: str = "any") -> list[str]:
        return serving_warnings(bound, kind="regression", target=target, heads=heads)

    (may,) = warned("mean", "cls", "stock")
    assert "may be our own (mean or cls)" in may
    (is_own,) = warned("cls")
    assert "is our own (cls)" in is_own
    assert "--head stock --target peft" in is_own
    assert warned("stock") == warned("mean", "cls", target="peft") == []
