"""How a search computes: measured once, kept, the same on a resume, and never another result."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.compose.base import attach, load_base
from autopeft.data.batches import pad
from autopeft.data.cache import cache_folder
from autopeft.data.encoded import PAD_MULTIPLE, EncodedData, EncodedSplit
from autopeft.errors import InputError
from autopeft.executors.cluster import Seen
from autopeft.journal import SearchLog, read_journal
from autopeft.search import computing as choosing
from autopeft.search.computing import Choosing, check_kept
from autopeft.search.prepare import prepare
from autopeft.search.prepared import Prepared
from autopeft.search.sketch import sketch
from autopeft.spec import SearchSpec
from autopeft.spec.parse import parse_search
from autopeft.trial import computing, tuning
from autopeft.trial.computing import (
    Computing,
    LengthProfile,
    answer_key,
    by_rule,
    keep_answer,
    known_answer,
    threads_for,
)
from autopeft.trial.evaluate import outputs, tensors
from autopeft.trial.setup import WorkSetup

RULE = Computing("bfloat16", "eager")


def rows_of(lengths: list[int]) -> EncodedSplit:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return EncodedSplit(offsets, np.ones(int(offsets[-1]), np.int32), labels=np.zeros(len(lengths), np.int64))


def data_of(lengths: list[int]) -> EncodedData:
    split = rows_of(lengths)
    return EncodedData({"train": split}, "sequence_classification", ("a", "b"), 0, max(lengths), {})


def test_like_data_share_a_profile_and_others_do_not() -> None:
    one, like = LengthProfile.of(rows_of([20] * 50 + [60] * 50)), LengthProfile.of(rows_of([18] * 40 + [58] * 40))
    assert one == like
    assert LengthProfile.of(rows_of([300] * 10)) != one
    assert LengthProfile.of(rows_of([8, 8, 8])).lengths == (8, 8, 8)
    assert LengthProfile.of(rows_of([130] * 9)).lengths == (160, 160, 160)
    assert all(length >= 1000 for length in LengthProfile.of(rows_of([1000] * 9)).lengths)


@pytest.mark.parametrize(
    ("workers", "cores", "gpu", "threads"),
    [(2, 2, False, 1), (1, 2, False, 2), (1, 1, False, 1), (4, 2, False, 1), (3, 16, False, 5), (1, 64, True, 4)],
)
def test_workers_share_the_cores_and_never_take_more(workers: int, cores: int, gpu: bool, threads: int) -> None:
    assert threads_for(workers, cores, gpu=gpu) == threads


def test_the_rule_takes_fused_attention_for_long_rows_and_on_gpus() -> None:
    assert by_rule(gpu=False, longest=64, threads=1).attention == "eager"
    assert by_rule(gpu=False, longest=512, threads=1).attention == "sdpa"
    assert [by_rule(gpu=gpu, longest=n, threads=1).padding for gpu in (False, True) for n in (64, 512)] == [2, 8, 8, 8]
    assert by_rule(gpu=True, longest=64, threads=1, precision="bfloat16").attention == "sdpa"


def runner(name: str, seconds: float, threads: int = 1) -> Any:
    precision, attention = name.split()
    way: Any = tuning._Way(precision, attention, threads)  # type: ignore[arg-type]
    nothing: Any = None
    return tuning._Runner(nothing, nothing, way, {0: [seconds]})


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({"bfloat16 eager": 1.0, "bfloat16 sdpa": 1.2, "float32 eager": 2.0}, "bfloat16 eager"),
        ({"bfloat16 eager": 1.0, "bfloat16 sdpa": 0.8, "float32 eager": 2.0}, "bfloat16 sdpa"),
        ({"bfloat16 eager": 1.0, "bfloat16 sdpa": 0.97}, "bfloat16 eager"),
        ({"bfloat16 eager": 1.0, "float32 eager": 1.1, "float32 sdpa": 1.3}, "float32 eager"),
        ({"bfloat16 eager": 1.0, "float32 eager": 1.1, "float32 sdpa": 0.7}, "float32 sdpa"),
        ({"float32 eager": 1.0, "float32 sdpa": 0.9}, "float32 sdpa"),
    ],
)
def test_what_rounds_less_or_is_the_rule_wins_where_it_is_nearly_as_fast(times: dict[str, float], chosen: str) -> None:
    best = tuning._best([runner(name, seconds) for name, seconds in times.items()], RULE, [0])
    assert best.way.name == chosen


def ticking(rates: Callable[[], float]) -> Callable[[], float]:
    """A clock on which every reading is later by what the callable says."""
    now = itertools.accumulate(iter(rates, object()))
    return lambda: next(now)


def test_a_real_measurement_chooses_what_was_fastest(setup: WorkSetup) -> None:
    base = tuning.converted(setup.base, "bfloat16")
    threads = torch.get_num_threads()
    state = torch.random.get_rng_state()
    cpu = torch.device("cpu")
    before = {name: array.copy() for name, array in base.tensors.items()}
    found = tuning.tune(base, setup.data, RULE, head="mean", labels=2, device=cpu, seconds=60.0)
    assert found.source == "measured"
    assert found.seconds is not None
    trained = {name: value for name, value in found.figures.items() if name.startswith("train")}
    assert set(trained) == {f"train {p} {a}" for p in ("bfloat16", "float32") for a in ("eager", "sdpa")}
    assert all(value > 0 for value in found.figures.values())
    assert trained[f"train {found.precision} {found.attention}"] <= 1.3 * min(trained.values())
    assert found.evaluation_rows in tuning.BATCHES
    assert f"evaluate {found.evaluation_rows} rows" in found.figures
    assert Computing.from_dict(found.to_dict()) == found
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, array in base.tensors.items():
        np.testing.assert_array_equal(array, before[name])


def test_without_time_the_rule_stands(setup: WorkSetup) -> None:
    hurried = ticking(lambda: 1.0)
    rule = replace(RULE, precision="float32")
    cpu = torch.device("cpu")
    found = tuning.tune(setup.base, setup.data, rule, head="mean", labels=2, device=cpu, seconds=0.5, clock=hurried)
    assert (found.source, found.figures) == ("rule", {})
    assert replace(found, seconds=None) == rule
    assert tuning.seconds_for(None) == tuning.MOST_SECONDS
    assert tuning.seconds_for(100.0) == 2.0
    assert tuning.seconds_for(5.0) == 0.0


def test_only_what_is_not_fixed_is_tried(setup: WorkSetup) -> None:
    bf16 = tuning.converted(setup.base, "bfloat16")
    names = lambda fixed, rule=RULE: [w.name for w in tuning._ways(rule, bf16, torch.device("cpu"), fixed)]  # noqa: E731
    assert names({}) == ["bfloat16 eager", "bfloat16 sdpa", "float32 eager", "float32 sdpa"]
    assert names({"precision": "bfloat16"}) == ["bfloat16 eager", "bfloat16 sdpa"]
    assert names({"attention": "eager"}) == ["bfloat16 eager", "float32 eager"]
    assert names({}, replace(RULE, precision="float32")) == ["float32 eager", "float32 sdpa"]
    assert len(names({}, replace(RULE, threads=2))) == 8


def test_a_base_is_converted_there_and_back(setup: WorkSetup, short_minilm: Path) -> None:
    bf16 = tuning.converted(setup.base, "bfloat16")
    again = tuning.converted(tuning.converted(bf16, "float32"), "bfloat16")
    for name, array in bf16.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)
    read = load_base(short_minilm, kind=setup.kind, dtype="bfloat16").tensors
    for name, array in read.items():
        np.testing.assert_array_equal(bf16.tensors[name], array)


def test_both_attentions_give_the_same_logits(setup: WorkSetup) -> None:
    batch = tensors(pad(setup.data.splits["train"], np.arange(16), setup.data.pad_token), torch.device("cpu"))
    found = []
    for attention in ("eager", "sdpa"):
        carrier = attach(setup.base, head="stock", labels=2, attention=attention)  # type: ignore[arg-type]
        assert carrier.attention == attention
        with torch.inference_mode():
            found.append(carrier.model(**batch).logits)
    assert float((found[0] - found[1]).abs().max()) < 1e-5
    assert float(found[0].abs().max()) > 0.01


def test_the_rows_of_an_evaluation_batch_change_no_output(setup: WorkSetup) -> None:
    split = setup.data.splits["validation"]
    model = setup_model(setup)
    rows = np.arange(split.rows)
    found = [
        outputs(model, split, replace(setup, evaluation_rows=n), torch.device("cpu"), rows=rows) for n in (1, 7, 64)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other["log_likelihood"], found[0]["log_likelihood"], atol=1e-5)
        np.testing.assert_array_equal(other["prediction"], found[0]["prediction"])


def setup_model(setup: WorkSetup) -> Any:
    from autopeft.trial.workbench import Workbench

    bench = Workbench(setup)
    return bench._bare(bench.carrier("mean"))


def spec_of(minilm: Path, data: Path, **more: Any) -> SearchSpec:
    task = {"model": str(minilm), "data": str(data)}
    return parse_search({"task": task, "budget": {}, "executor": "inprocess", **more})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Computing]:
    """Measurements that were made; each answers with fused attention in float32, which no rule here would say."""
    made: list[Computing] = []

    def answer(base: Any, data: Any, rule: Computing, **more: Any) -> Computing:
        found = replace(rule, precision="float32", attention="sdpa", evaluation_rows=64, source="measured", seconds=1.0)
        made.append(replace(found, figures={"train float32 sdpa": 1.25}))
        return made[-1]

    monkeypatch.setattr(choosing, "tune", answer)
    return made


def test_an_answer_is_kept_and_used_again(minilm: Path, tiny_reviews: Path, counted: list[Computing]) -> None:
    spec = spec_of(minilm, tiny_reviews)
    first = prepare(spec, measure=True)
    assert (first.precision, first.attention, first.base.dtype) == ("float32", "sdpa", "float32")
    assert first.computing.source == "measured"
    assert first.setup(Path("x")).evaluation_rows == 64
    again = prepare(spec, measure=True)
    assert len(counted) == 1
    assert again.computing == replace(first.computing, source="cached")
    assert any("sdpa attention" in note and "measured here before" in note for note in again.notes)
    # A plan never measures, and uses what is known.
    assert prepare(spec).computing == again.computing


def test_a_plan_does_not_measure(minilm: Path, tiny_reviews: Path, counted: list[Computing]) -> None:
    assert prepare(spec_of(minilm, tiny_reviews)).computing.source == "rule"
    assert counted == []


@pytest.mark.parametrize("damage", [b"", b"not an entry", None])
def test_a_damaged_answer_is_measured_again(
    minilm: Path, tiny_reviews: Path, counted: list[Computing], damage: bytes | None
) -> None:
    spec = spec_of(minilm, tiny_reviews)
    prepare(spec, measure=True)
    folder = cache_folder()
    assert folder is not None
    (entry,) = (folder / "computing").iterdir()
    if damage is None:
        # A whole entry that holds nonsense.
        computing._shelf().put_values(entry.name, {**counted[0].to_dict(), "attention": "flash_9"})
    else:
        entry.write_bytes(damage)
    assert known_answer(entry.name) is None
    assert prepare(spec, measure=True).computing.source == "measured"
    assert len(counted) == 2
    assert known_answer(entry.name) is not None


def test_the_user_overrules(minilm: Path, tiny_reviews: Path, counted: list[Computing]) -> None:
    asked = prepare(spec_of(minilm, tiny_reviews, precision="float32", attention="eager"), measure=True)
    assert (asked.precision, asked.attention, asked.computing.source) == ("float32", "eager", "given")
    assert counted == []
    half = prepare(spec_of(minilm, tiny_reviews, attention="eager"), measure=True)
    assert (half.attention, half.computing.source, len(counted)) == ("eager", "given", 1)
    with pytest.raises(InputError, match="attention"):
        spec_of(minilm, tiny_reviews, attention="flash")
    # What was measured for one wish is no answer to another question.
    assert prepare(spec_of(minilm, tiny_reviews)).computing.source == "rule"


def test_the_key_tells_apart_what_matters(monkeypatch: pytest.MonkeyPatch, minilm: Path, tiny_reviews: Path) -> None:
    def key(lengths: list[int] | None = None, content: str = "a", gpu: bool = False, **more: Any) -> str:
        spec = spec_of(minilm, tiny_reviews, **more)
        data = data_of(lengths or [16] * 40)
        return Choosing(spec, data, "sequence_classification", gpu=gpu, content_hash=content)._key

    keys = {key(), key(content="b"), key([200] * 40), key(executor="ray", workers=64)}
    monkeypatch.setattr(computing, "machine", lambda gpu: "another processor")
    keys.add(key())
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.add(key())
    assert len(keys) == 6


def test_a_cluster_is_not_judged_by_this_machine(
    minilm: Path, tiny_reviews: Path, counted: list[Computing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopeft.search.prepare.device_there", lambda spec: Seen(False, False, 0.0))
    spec = spec_of(minilm, tiny_reviews)
    prepare(spec, measure=True)
    elsewhere = replace(spec, executor="ray", ray_address="10.0.0.1:6379")
    assert prepare(elsewhere, measure=True).computing.source == "rule"
    assert len(counted) == 1


def test_a_resume_computes_as_the_search_began(
    minilm: Path, tiny_reviews: Path, tmp_path: Path, counted: list[Computing]
) -> None:
    from autopeft.journal import Journal

    out = tmp_path / "run"
    begun = prepare(spec_of(minilm, tiny_reviews, out=str(out)), measure=True)
    with Journal.create(out) as journal:
        journal.append("search_started", schema=1, version="0.1.0", **begun.header({}))
    assert len(counted) == 1
    header = SearchLog.fold(read_journal(out)).header
    assert header["computing"]["attention"] == "sdpa"
    assert header["computing"]["source"] == "measured"
    folder = cache_folder()
    assert folder is not None
    for entry in (folder / "computing").iterdir():
        entry.unlink()
    spec = spec_of(minilm, tiny_reviews, out=str(out), resume=True)
    kept = prepare(spec, measure=True)
    assert len(counted) == 1
    assert kept.computing == replace(counted[0], source="journal")
    assert (kept.precision, kept.attention) == ("float32", "sdpa")
    with pytest.raises(InputError, match="computes as it began"):
        prepare(spec_of(minilm, tiny_reviews, out=str(out), resume=True, attention="eager"))
    check_kept(replace(spec, attention="sdpa"), kept.computing)


def test_a_search_of_an_earlier_version_goes_on_by_the_rule(
    minilm: Path, tiny_reviews: Path, tmp_path: Path, counted: list[Computing]
) -> None:
    from autopeft.journal import Journal

    out = tmp_path / "run"
    with Journal.create(out) as journal:
        journal.append("search_started", schema=1, version="0.1.0")
    found = prepare(spec_of(minilm, tiny_reviews, out=str(out), resume=True), measure=True).computing
    assert (found.source, counted) == ("rule", [])
    # By which it padded.
    assert found.padding == PAD_MULTIPLE


def padding_of(prepared: Prepared, folder: Path) -> set[int]:
    """What the batches of all splits are padded to, eval sets included, and what memory is predicted for."""
    splits = prepared.setup(folder).data.splits
    length = prepared.memory(prepared.heads[0])._length
    assert length == splits["train"].longest
    assert length - prepared.computing.padding < splits["train"].lengths.max() <= length
    return {split.pad_multiple for split in splits.values()} | {prepared.computing.padding}


def test_all_rows_of_a_search_are_padded_alike_and_as_it_is_planned(
    minilm: Path, tiny_reviews: Path, tmp_path: Path
) -> None:
    more = {"eval_sets": {"more": str(tiny_reviews / "validation.csv")}}
    short = prepare(spec_of(minilm, tiny_reviews, **more))
    assert len(short.setup(tmp_path).data.splits) == 4
    assert padding_of(short, tmp_path) == padding_of(sketch(spec_of(minilm, tiny_reviews), None), tmp_path) == {2}
    # An answer that was measured on other rows does not bring their padding.
    kept = replace(short.computing, padding=PAD_MULTIPLE, source="measured")
    profile = LengthProfile.of(short.data.splits["train"])
    about = {"kind": short.raw.kind, "gpu": False, "threads": short.computing.threads, "workers": 1}
    content = short.identity.content_hash
    keep_answer(answer_key(content_hash=content, profile=profile, batch_size=16, **about), kept)
    again = prepare(spec_of(minilm, tiny_reviews))
    assert again.computing.source == "cached"
    assert padding_of(again, tmp_path) == {2}


def test_a_processor_that_does_not_say_its_name_has_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(computing, "CPUINFO", tmp_path / "missing")
    assert computing.machine(False)
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: Some Processor\nflags\t\t: b a\n")
    monkeypatch.setattr(computing, "CPUINFO", file)
    first = computing.machine(False)
    file.write_text("model name\t: Some Processor\nflags\t\t: a b\n")
    assert computing.machine(False) == first
    file.write_text("model name\t: Some Processor\nflags\t\t: a b c\n")
    assert computing.machine(False) != first
    assert first.startswith("Some Processor (")


def test_what_it_says() -> None:
    told = replace(RULE, source="measured", seconds=2.0, figures={"train bfloat16 eager": 5.721}).told()
    assert "bfloat16 with eager attention and one thread" in told
    assert "measured here in 2.0 s; ms per row: train bfloat16 eager 5.72" in told
    assert "as asked for" in replace(RULE, source="given", threads=2).told()


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append("wait"))
    fake: Any = SimpleNamespace(_device=torch.device("cuda"), _ticks=time.perf_counter)
    tuning._Trials._timed(fake, lambda: waited.append("work"))
    assert waited == ["wait", "work", "wait"]
