"""The pure parts of the benchmarks of speed: what is compared, how ratios are made, and when a loss shows."""

from __future__ import annotations

import csv
import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from autopeft.compose.base import meta_carrier
from autopeft.space.configuration import Configuration

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))

    def loaded(name: str) -> ModuleType:
        return importlib.import_module(name)

    return loaded


def test_peft_builds_every_configuration_of_the_list_with_as_many_parameters(load, minilm: Path) -> None:
    import torch

    carrier = meta_carrier(minilm, kind="sequence_classification", head="stock", labels=2)
    modules = carrier.modules
    listed = load("configurations").entries(carrier, 24)
    assert len({json.dumps(entry["configuration"]) for entry in listed}) == 24
    assert len({entry["method"] for entry in listed}) == 7
    for entry in listed:
        with torch.device("meta"):
            base = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(minilm, num_labels=2))
            model = get_peft_model(base, load("peer_trainer").peft_config(json.loads(json.dumps(entry["peft"]))))
        trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        assert sum(n for name, n in trained.items() if "classifier" not in name) == entry["parameters"]
        assert Configuration.from_dict(entry["configuration"]).adapter_params(modules) == entry["parameters"]


def test_a_shorter_list_is_the_beginning_of_a_longer_one(load, minilm: Path) -> None:
    modules = meta_carrier(minilm, kind="sequence_classification", head="stock", labels=2).modules
    fixed = load("configurations").fixed
    assert fixed(modules, 5) == fixed(modules, 24)[:5]


def test_the_peers_of_the_search_may_train_what_fits_one_per_cent_of_the_model(load, minilm: Path) -> None:
    peers = load("peer_search")
    modules = meta_carrier(minilm, kind="sequence_classification", head="stock", labels=2).modules
    roles = {"qv": ("query", "value"), "all": ("query", "key", "value", "output", "up", "down")}
    for place, ranks in peers.RANKS.items():
        each = sum(site.in_features + site.out_features for site in modules.select(roles[place]))
        assert max(ranks) * each <= modules.base_params // 100 < 1.5 * max(ranks) * each


def test_a_ratio_is_of_all_seconds_and_its_interval_covers_it(load) -> None:
    found = load("measured").ratio_of_sums([10.0, 12.0, 8.0, 11.0], [1.0, 2.0, 1.0, 1.0])
    assert found["value"] == pytest.approx(41 / 5)
    assert 6.0 <= found["low"] < found["value"] < found["high"] <= 11.0
    assert load("measured").ratio_of_sums([3.0, 3.0, 3.0], [1.0, 1.0, 1.0])["low"] == 3.0


def test_two_blocks_give_no_interval_and_unequal_lists_no_ratio(load) -> None:
    measured = load("measured")
    assert measured.ratio_of_sums([2.0, 2.0], [1.0, 1.0]) == {"value": 2.0, "low": None, "high": None, "blocks": 2}
    with pytest.raises(ValueError, match="pairs"):
        measured.ratio_of_sums([1.0], [])


def test_costs_are_lines_through_what_jobs_took(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = load("scaling")
    source = tmp_path / "source"
    source.mkdir()
    for split in ("train", "validation", "test"):
        (source / f"{split}.csv").write_text("text,label\ngood,yes\nbad,no\n")

    def apart(request: dict) -> dict:
        tokens = 16 * len(Path(request["data"], "train.csv").read_text().splitlines()[1].split(",")[0].split())
        jobs = [1.0 + 0.01 * rows + 0.5 * (request["blocks"] or 0) + tokens for rows in request["rows"]]
        return {"jobs": jobs, "tokens": tokens}

    monkeypatch.setattr(scaling, "apart", apart)
    points = scaling.costs(source, tmp_path, rows=100, trials=5, evaluated=1)
    lines = scaling.lines(points)
    assert [places for places, _ in points["rows"]] == [100, 200, 400]
    each = {axis: line["each"] for axis, line in lines.items()}
    expected = {"rows": 0.01, "length": 1.0, "blocks": 0.5, "trials": 0.0}
    assert each == {axis: pytest.approx(value) for axis, value in expected.items()}
    ratio = load("measured").ratio_of_sums([2.0] * 3, [1.0] * 3)
    given = load("measured").ratio_of_sums([2.5] * 3, [1.0] * 3)
    ratios = {"two workers / one": ratio, "two processes / one, products alone": given}
    shown = scaling.table({"ratios": ratios, "points": points, "lines": lines})
    assert "2.00x" in shown
    assert "reach 80% of what the machine gives" in shown
    assert "| adapted blocks |" in shown


def test_a_slope_is_that_of_a_line(load) -> None:
    fixed, each = load("measured").slope([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
    assert (fixed, each) == (pytest.approx(3.0), pytest.approx(2.0))
    with pytest.raises(ValueError, match="different"):
        load("measured").slope([1.0, 1.0], [1.0, 2.0])


def test_every_contestant_has_its_turn_in_every_block_and_begins_as_often(load) -> None:
    turns = load("trials").turns(4, ["a", "b"])
    assert sorted(turns) == sorted((block, who) for block in range(4) for who in "ab")
    assert [turns[2 * block][1] for block in range(4)] == ["a", "b", "a", "b"]


def test_a_start_counts_once_over_all_blocks(load) -> None:
    rows = [{"wall": 20.0, "start": 6.0, "end": 2.0}, {"wall": 24.0, "start": 9.0, "end": 1.0}]
    seconds = load("trials").block_seconds(rows)
    assert seconds == [pytest.approx(16.5), pytest.approx(18.5)]
    assert sum(seconds) == pytest.approx(12 + 14 + 9)


def test_scores_within_seed_noise_are_told_from_those_beyond(load) -> None:
    within = load("trials").within_noise
    ours, again = [0.80, 0.82, 0.84, 0.86], [0.81, 0.81, 0.85, 0.85]
    near = within([0.81, 0.81, 0.84, 0.87], ours, again)
    assert near["share_within"] == 1.0
    assert near["low"] < 0 < near["high"]
    assert near["seed_deviation"] == pytest.approx(0.01 / math.sqrt(2))
    far = within([0.70, 0.72, 0.73, 0.76], ours, again)
    assert far["share_within"] == 0.0
    assert far["low"] > 0


def test_a_summary_takes_only_blocks_that_all_have_done(load) -> None:
    trials = load("trials")
    settings = {"contestants": ["autopeft", "trainer tuned"]}

    def row(who: str, block: int, wall: float, seed: int = trials.SEED) -> dict:
        scored = [{"index": 2 * block + i, "score": 0.8 + 0.01 * i} for i in range(2)]
        return {
            "contestant": who,
            "block": block,
            "seed": seed,
            "wall": wall,
            "start": 2.0,
            "end": 0.0,
            "busy": 9.0,
            "trials": scored,
        }

    record = load("measured").Record(Path("none.jsonl"), settings)
    record.rows = [row("autopeft", 0, 10.0), row("trainer tuned", 0, 34.0), row("autopeft", 1, 90.0)]
    record.rows.append(row("autopeft", 0, 99.0, trials.SEED + 1))
    entry = {"method": "lora", "parameters": 1, "rate": 1e-3, "batch": 16}
    found = trials.summary(record, settings, [{"index": i, **entry} for i in range(4)])
    assert found["blocks"] == 1
    assert found["ratios"]["autopeft / trainer tuned"]["value"] == pytest.approx(3.4)
    assert found["contestants"]["autopeft"]["trials_per_hour"] == pytest.approx(720)
    assert found["scores"]["trainer tuned"]["difference"] == 0.0
    assert len(found["configurations"]) == 2
    assert "3.40x" in trials.table(found)


def test_what_is_reached_late_or_never_is_told_so(load) -> None:
    search = load("search")
    theirs = [{"at": 50.0, "score": 0.8}, {"at": 90.0, "score": 0.85}, {"at": 130.0, "score": 0.9}]
    peer = search.best(theirs, 120.0)
    assert peer["at"] == 90.0
    ours = [{"at": 10.0, "score": 0.7}, {"at": 30.0, "score": 0.85}, {"at": 100.0, "score": 0.86}]
    assert search.ratio(peer, ours) == {"value": 3.0, "bound": False, "seconds": 30.0}
    assert search.ratio({"at": 50.0, "score": 0.95}, ours) == {"value": 0.5, "bound": True, "seconds": None}
    assert search.rising(theirs[::-1]) == [(50.0, 0.8), (90.0, 0.85), (130.0, 0.9)]


def test_a_search_that_never_gets_there_is_counted(load) -> None:
    search = load("search")
    rows = [
        {"task": "t", "seed": 1, "contestant": "autopeft", "events": [{"at": 20.0, "score": 0.8}]},
        {"task": "t", "seed": 1, "contestant": "tune tuned", "events": [{"at": 10.0, "score": 0.9}]},
        {"task": "t", "seed": 1, "contestant": "optuna tuned", "events": [{"at": 40.0, "score": 0.8}]},
    ]
    found = search.summary(rows, {"seconds": 60.0})
    assert found["never"] == {"tune tuned": 1, "optuna tuned": 0}
    assert found["ratios"]["autopeft / optuna tuned"]["value"] == pytest.approx(2.0)
    assert found["ratios"]["autopeft / tune tuned"]["value"] == pytest.approx(0.5)
    assert "never" in search.table(found)


def test_a_ratio_that_fell_or_is_missing_does_not_hold(load) -> None:
    compare = load("check").compare
    found = {
        name: fine for name, _, fine in compare({"a": 4.0, "b": 4.0, "c": 4.0}, {"a": 3.0, "b": 2.7, "d": 1.0}, 0.3)
    }
    assert found == {"a": True, "b": False, "c": False, "d": True}
    (better,) = compare({"a": 4.0}, {"a": 6.0}, 0.3)
    assert better[2]
    assert "--write" in better[1]


@pytest.mark.parametrize("name", ["trials", "limit", "scaling"])
def test_the_short_runs_are_asked_for_as_the_scripts_understand(load, name: str, tmp_path: Path, capsys) -> None:
    load(name).main([*load("check").SHORT[name], "--out", str(tmp_path), "--table"])
    assert "nothing is on record" in capsys.readouterr().out


def test_every_operation_has_a_kind(load) -> None:
    kind = load("limit").kind_of
    assert kind("aten::addmm") == kind("aten::bmm") == "matrix products"
    assert kind("aten::_softmax_backward_data") == "attention's softmax"
    assert kind("aten::native_layer_norm_backward") == "norms"
    assert kind("aten::_fused_adamw_") == "optimizer and clipping"
    assert kind("aten::add_") == "sums and products"
    assert kind("aten::lift_fresh") == "other operations"


def test_runs_of_other_settings_are_kept_and_passed_over(load, tmp_path: Path) -> None:
    measured = load("measured")
    path = tmp_path / "record.jsonl"
    measured.Record(path, {"rows": 1}).add({"block": 0})
    other = measured.Record(path, {"rows": 2})
    assert other.find(block=0) is None
    other.add({"block": 0})
    assert measured.Record(path, {"rows": 1}).find(block=0) is not None
    assert len(path.read_text().splitlines()) == 2


def test_longer_rows_keep_their_labels(load, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows([("good", "yes"), ("bad", "no")] * 10)
    out = load("measured").write_rows(tmp_path, tmp_path / "out", train=8, validation=4, repeat=3)
    rows = list(csv.DictReader((out / "train.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert all(row["text"] == " ".join([{"yes": "good", "no": "bad"}[row["label"]]] * 3) for row in rows)


def test_a_result_holds_no_folder_of_the_machine(load) -> None:
    hidden = load("measured").without_folders(["--data-root", "/a/b", "--rows", "5", "--out=/c"])
    assert hidden == ["--data-root", "DIR", "--rows", "5", "--out=DIR"]


def test_charts_are_drawn_from_results(load, tmp_path: Path) -> None:
    drawn = load("drawn")
    speeds = {"autopeft": 400.0, "trainer tuned": 100.0}
    contestants = {who: {"trials_per_hour": speed, "trials": 24} for who, speed in speeds.items()}
    settings = {"rows": 1500, "task": "sst2", "epochs": 1}
    drawn.save("trials", {"contestants": contestants, "settings": settings}, tmp_path)
    run = {"task": "t", "seed": 1, "peer": "tune tuned", "score": 0.9, "value": 2.5, "bound": True}
    drawn.save("search", {"runs": [run]}, tmp_path)
    drawn.save("scaling", {"points": {"rows": [(1, 2.0), (2, 3.0)], "trials": [(1, 1.0)]}}, tmp_path)
    drawn.save("limit", {"models": {}}, tmp_path)
    texts = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert sorted(texts) == ["scaling.svg", "search.svg", "trials.svg"]
    assert ">400<" in texts["trials.svg"]
    assert "early" in texts["search.svg"]


def test_the_documents_show_what_is_on_record(load) -> None:
    told = (FOLDER.parent / "README.md").read_text() + (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    measured, shown = load("measured"), []
    for name in load("speed_tables").TITLES:
        found = measured.read_result(name)
        if found is not None:
            shown.append(name)
            assert load(name).table(found).strip() in told, name
    assert {"trials", "limit", "scaling"} <= set(shown)
    short = json.loads((FOLDER / "baseline.json").read_text())["trials"]
    ratio = short["autopeft / trainer tuned, a start in every block"]
    assert f"({ratio:.2f}x, `benchmarks/baseline.json`)" in " ".join(told.split())
    early = json.loads((FOLDER / "results" / "early_exit.json").read_text())
    assert sum(task["curves"] for task in early.values()) == 95
    for rule in early["sst2"]["rules"]:
        means = [early[task]["rules"][rule]["mean"] for task in ("sst2", "clinc150")]
        assert f"| {rule} | {means[0]:.4f} | {means[1]:.4f} |" in told


def test_the_readme_says_what_the_controller_took() -> None:
    found = json.loads((FOLDER / "results" / "overhead.json").read_text())
    told = " ".join((FOLDER.parent / "README.md").read_text().split())
    run, marks = found["runs"][0], {row["trials"]: row for row in found["scale"]["marks"]}
    assert f"took {run['share']:.1%} of the time of `make demo`".replace("%", " %") in told
    costs = [marks[count]["ms_per_trial_all"] for count in (10_000, 100_000)]
    asks = [marks[count]["ms_per_ask"] for count in (10_000, 100_000)]
    assert f"controller {costs[0]:.0f} ms from the 1,000th to the 10,000th and {costs[1]:.0f} ms up to" in told
    assert f"(a question to the sampler {asks[0]:.0f} and {asks[1]:.0f} ms)" in told
    assert f"in {marks[100_000]['resident_bytes'] / 2**30:.1f} GiB of memory" in told
    assert f"resumed in {found['resume']['resume_seconds']:.0f} seconds" in told
