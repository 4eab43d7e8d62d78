"""A finalist's latency: measured once, journalled, and told in result and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compose_models import alone
from example_search import ExampleSearch
from test_search_simulated import Bench
from transformers import LlamaConfig, LlamaForCausalLM

from autopeft.compose.adapt import adapt
from autopeft.compose.base import attach, load_base
from autopeft.journal import SearchLog, read_journal
from autopeft.report import gather, report
from autopeft.spec import Budget
from autopeft.strategy.jobs import Train
from autopeft.testing.executors import lora_job
from autopeft.testing.worlds import SyntheticWorld, by_method
from autopeft.trial.latency import _forward
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import Workbench, speed_configuration

TOLD = {"1": 1.25, "16": 1.125}


def test_a_worker_measures_it_where_it_is_asked_to(setup: WorkSetup) -> None:
    job = lora_job(setup, "t", rows=16)
    assert Workbench(setup).run(job).values["latency"] is None
    found = Workbench(setup).run(replace(job, latency=True)).values["latency"]
    assert list(found) == ["1", "16"]
    assert all(0.2 < ratio < 20 for ratio in found.values())
    merged = Workbench(replace(setup, merged=True)).run(replace(job, latency=True))
    assert merged.values["latency"] == {"1": 1.0, "16": 1.0}


def test_measuring_changes_nothing_that_is_trained(setup: WorkSetup) -> None:
    job = lora_job(setup, "t", rows=64)
    without, measured = (Workbench(setup).run(replace(job, latency=asked)) for asked in (False, True))
    assert without.sha256 == measured.sha256
    assert without.metrics == measured.metrics


def test_a_language_model_is_timed_with_the_logits_of_the_last_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    carrier = attach(load_base(tmp_path, kind="causal_lm"), head="lm")
    modules = carrier.modules
    ids = torch.arange(12).reshape(3, 4)
    mask = torch.ones_like(ids)
    for configuration in (speed_configuration(modules, "causal_lm"), alone(modules, "prompt_tuning")):
        model = adapt(carrier, configuration, modules, seed=0).eval()
        with torch.inference_mode():
            whole = model(ids, mask)
            last = _forward(model, "causal_lm")(ids, mask, None)
        assert isinstance(last, torch.Tensor)
        torch.testing.assert_close(last, whole[:, -1])


@pytest.mark.parametrize(("slots", "stops"), [(2, None), (4, None), (2, 10), (2, 16), (4, 16), (4, 17)])
def test_one_run_of_each_finalist_measures_it(tmp_path: Path, slots: int, stops: int | None) -> None:
    world = SyntheticWorld(by_method({"lora": 0.86, "dora": 0.9}))
    bench = Bench(tmp_path / "run", world, Budget(max_trials=8), slots=slots)
    if stops is None:
        log = bench.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            bench.run(stop_after=stops)
        log = bench.run(resume=True)
    assert log.finalists is not None
    measured = [trial for trial in log.trials.values() for rung in trial.rungs if rung.latency is not None]
    assert {trial.purpose for trial in measured} == {"confirm"}
    assert sorted(trial.hash for trial in measured) == sorted(log.finalists[r] for r in ("baseline", "challenger"))
    assert log.latency(log.finalists["challenger"]) == TOLD
    explored = next(hash for hash in log.configurations if hash not in log.finalists.values())
    assert log.latency(explored) is None


def test_where_the_first_run_fails_the_next_one_measures(tmp_path: Path) -> None:
    broken: list[str] = []

    def fate(job: Train, attempt: int) -> str:
        if job.latency and not broken:
            broken.append(job.configuration.hash)
            return "nan"
        return "ok"

    world = SyntheticWorld(by_method({"lora": 0.86, "dora": 0.9}), fate=fate)
    # One worker: the others have not begun when the first one fails.
    log = Bench(tmp_path / "run", world, Budget(max_trials=8), slots=1).run()
    assert log.latency(broken[0]) == TOLD


def test_it_is_told_in_the_report(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    lora, mix = search.explore()
    search.add("finalists", baseline=lora, challenger=mix, seeds=[101], rows=9000, rung=2)
    for hash, arm in ((lora, "baseline"), (mix, "space")):
        trial = search.begin(hash, arm, "confirm", 101)
        rung = {"rung": 2, "rows": 9000, "metrics": {"accuracy": 0.9}, "seconds": 1.0}
        search.add("rung", trial=trial, **rung, latency=TOLD if arm == "space" else None)
        search.end(trial, "completed")
    verdict = {"name": "better", "difference": 0.013, "low": 0.004, "high": 0.022, "takes": "challenger"}
    search.add("verdict", **verdict, reason="mix is better", seeds=[101])
    search.journal.close()
    log = SearchLog.fold(read_journal(tmp_path / "run"))
    by_label = {contender.label: contender.latency for contender in gather(log).contenders}
    assert by_label["best of the space"] == TOLD
    assert by_label["tuned LoRA"] is None
    text = Path(report(tmp_path / "run")).read_text(encoding="utf-8")
    assert "latency x base" in text
    assert "1.25 at 1 row, 1.12 at 16 rows" in text
    assert "1.25 x base" in text
