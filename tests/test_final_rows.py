"""The finalists row by row: flips, classes, predictions, in the result and in the report."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_eval_sets import an_eval_set, bench, declared, folded

from autopeft.evidence import class_scores, flips
from autopeft.journal import Journal
from autopeft.report import report
from autopeft.search.ledger import Ledger
from autopeft.search.rows import FinalRows
from autopeft.strategy.jobs import Evaluate
from autopeft.testing.worlds import SyntheticWorld, by_method
from autopeft.trial.checkpoint import read_arrays, write_arrays
from autopeft.trial.evaluate import chosen_rows

# In result and report


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A search that has ended, with an eval set; its folder and result."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    made = bench(folder, world=Labelled(by_method({"lora": 0.8, "parallel": 0.9})), eval_rows={"web": 600})
    made.run()
    declared(folder, {"web": an_eval_set(600)})
    made.run(resume=True)
    with Journal.resume(folder, clock=made.clock) as journal:
        ledger = Ledger(journal)
        rows = FinalRows(ledger)
        values = {"flips": rows.flips(), "slices": rows.slices(), "eval_sets": rows.eval_sets()}
        values["predictions"] = rows.write()
        ledger.write("finished", status="found", result=values)
    return folder, values


class Labelled(SyntheticWorld):
    """The two adapters that are evaluated differ."""

    def outcome(self, job: Any, folder: str) -> Any:
        outcome = super().outcome(job, folder)
        if isinstance(job, Evaluate):
            arrays = self._outputs(0.8 if job.name == "baseline" else 0.9, 1 if job.name == "baseline" else 2)
            write_arrays(Path(folder) / job.outputs, arrays)
        return outcome


def test_flips_are_of_the_test_rows_and_add_up(ended: tuple[Path, dict[str, Any]]) -> None:
    found = ended[1]["flips"]
    assert (found["split"], found["opponent"], found["rows"]) == ("test", "baseline", 600)
    assert found["won"] + found["lost"] + found["both_right"] + found["both_wrong"] == 600
    # Accuracies of 0.9 and 0.8.
    assert found["won"] - found["lost"] == 60
    assert found["p_value"] < 0.001


def test_slices_are_of_every_class(ended: tuple[Path, dict[str, Any]]) -> None:
    found = ended[1]["slices"]
    assert [one["rows"] for one in found["classes"]] == [300, 300]
    recall = np.mean([one["winner"]["recall"] for one in found["classes"]])
    assert recall == pytest.approx(0.9)
    assert found["classes"][0]["opponent"]["f1"] < found["classes"][0]["winner"]["f1"]


def test_eval_sets_tell_metrics_of_everybody(ended: tuple[Path, dict[str, Any]]) -> None:
    found = ended[1]["eval_sets"]["web"]
    assert (found["rows"], found["evaluated"], found["incumbent"]) == (600, 600, None)
    assert found["winner"] == found["challenger"]
    assert set(found["baseline"]) == {"accuracy"}


def test_predictions_are_rows_and_no_texts(ended: tuple[Path, dict[str, Any]]) -> None:
    folder, values = ended
    assert set(values["predictions"]) == {"validation", "test", "web"}
    table = pq.read_table(folder / values["predictions"]["test"])
    assert set(table.column_names[2:]) == {
        f"{name}_{what}" for name in ("winner", "opponent") for what in ("prediction", "log_likelihood")
    }
    assert table.column_names[:2] == ["row", "label"]
    right = pa.compute.equal(table["label"], table["winner_prediction"])
    assert pa.compute.mean(right).as_py() == pytest.approx(0.9)
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == [
        "test.parquet", "validation.parquet", "web.parquet",
    ]  # fmt: skip


def test_rows_that_only_one_was_judged_on_are_told(ended: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(ended[0], tmp_path / "run")
    with Journal.resume(tmp_path / "run") as journal:
        rows = FinalRows(Ledger(journal))
        file = tmp_path / "run" / str(folded(ended[0]).tests[rows.winner]["outputs"])
        chosen = chosen_rows(600, 100)
        write_arrays(file, {name: array[chosen] for name, array in read_arrays(file).items()})
        assert rows.flips() is None
        table = pq.read_table(tmp_path / "run" / rows.write()["test"]).to_pandas()
        (tmp_path / "run" / str(folded(ended[0]).tests[rows.opponent]["outputs"])).unlink()
        assert rows.compared()[0] == "validation"
    before = pd.read_parquet(ended[0] / "predictions" / "test.parquet")
    assert table["label"].equals(before["label"])
    assert table["opponent_prediction"].equals(before["opponent_prediction"])
    seen = table["winner_prediction"].notna()
    assert table["row"][seen].tolist() == chosen.tolist()
    assert table["winner_prediction"][seen].equals(before["winner_prediction"][seen])


@pytest.mark.parametrize("split", ["test", "web"])
def test_outputs_of_other_weights_stand_for_nobody(
    ended: tuple[Path, dict[str, Any]], tmp_path: Path, split: str
) -> None:
    shutil.copytree(ended[0], tmp_path / "run")
    with Journal.resume(tmp_path / "run") as journal:
        ledger = Ledger(journal)
        role = FinalRows(ledger).winner
        assert set(FinalRows(ledger).outputs(split)) == {"winner", "opponent"}
        # A search that was given more may have another run of the same role since.
        if split == "test":
            ledger.write("test", **{**ledger.log.tests[role], "sha256": "0" * 64})
        else:
            ledger.write("evaluated", **{**ledger.log.evaluations[split][role], "sha256": "0" * 64})
        rows = FinalRows(ledger)
        assert set(rows.outputs(split)) == {"opponent"}
        assert rows.compared()[0] == ("validation" if split == "test" else "test")
        assert (rows.eval_sets()["web"]["winner"] is None) == (split == "web")


def test_the_report_tells_it_from_the_journal_alone(ended: tuple[Path, dict[str, Any]]) -> None:
    folder, values = ended
    text = Path(report(folder)).read_text()
    found = values["flips"]
    assert f"the winner gets {found['won']} right that tuned LoRA gets wrong, and {found['lost']} the other" in text
    assert "McNemar p &lt; 0.001" in text
    assert "the verdict, over all seeds, is the answer" in text
    assert "All 2 classes on the test rows" in text
    assert re.search("<td[^>]*>web</td><td[^>]*>600</td>", text)


@pytest.mark.parametrize(
    ("kind", "right", "told"),
    [
        ("causal_lm", 0, "neither the winner nor tuned LoRA answers one exactly: exact match cannot tell them apart"),
        ("sequence_classification", 0, "neither the winner nor tuned LoRA gets one right: these rows cannot tell"),
        ("causal_lm", 1, "1 both get right and 63 both wrong"),
    ],
)
def test_rows_that_nobody_gets_right_are_no_comparison(tmp_path: Path, kind: str, right: int, told: str) -> None:
    flipped = {"split": "test", "opponent": "baseline", "rows": 64, "won": 0, "lost": 0, "p_value": 1.0}
    with Journal.create(tmp_path) as journal:
        journal.append("search_started", task={"kind": kind, "metric": "log_likelihood"}, spec={})
        result = {"flips": {**flipped, "both_right": right, "both_wrong": 64 - right}}
        journal.append("finished", status="found", result=result)
    text = Path(report(tmp_path)).read_text()
    assert told in text
    assert ("McNemar" in text) == bool(right)


def test_a_search_without_a_verdict_has_no_rows_to_tell(tmp_path: Path) -> None:
    made = bench(tmp_path / "run", eval_rows={"web": 300})
    with pytest.raises(KeyboardInterrupt):
        made.run(stop_after=5)
    with Journal.resume(tmp_path / "run") as journal:
        rows = FinalRows(Ledger(journal))
        assert (rows.flips(), rows.slices(), rows.eval_sets(), rows.write()) == (None, None, {}, {})
    assert not (tmp_path / "run" / "predictions").exists()


# By row


def test_flips_of_a_classification() -> None:
    label = np.zeros(200, int)
    first, second = (np.ones(200, int) for _ in range(2))
    first[:141], second[:100], second[141:164] = 0, 0, 0
    found = flips("sequence_classification", *({"prediction": p, "label": label} for p in (first, second)))
    assert found is not None
    assert (found.won, found.lost, found.both_right, found.both_wrong) == (41, 23, 100, 36)
    # 64 discordant pairs, 23 or fewer of one sort: twice the binomial tail.
    tail = sum(math.comb(64, k) for k in range(24)) / 2**64
    assert found.p_value == pytest.approx(2 * tail)


def test_flips_of_other_kinds() -> None:
    near = {"prediction": np.array([1.0, 2.0, 3.5, 4.0]), "label": np.array([1.0, 2.0, 3.0, 4.0])}
    far = {**near, "prediction": np.array([1.5, 2.5, 3.1, 4.0])}
    found = flips("regression", near, far)
    assert found is not None
    assert (found.rows, found.won, found.lost, found.both_right, found.p_value) == (4, 2, 1, None, 1.0)
    exact = [{"log_likelihood": np.zeros(9), "exact": np.array(e, np.float32)} for e in ([1, 1, 0], [1, 0, 0])]
    found = flips("causal_lm", *exact)
    assert found is not None
    assert (found.rows, found.won, found.lost, found.both_right, found.both_wrong) == (3, 1, 0, 1, 1)


def test_other_rows_are_not_compared() -> None:
    one = {"prediction": np.zeros(5, int), "label": np.zeros(5, int)}
    assert flips("sequence_classification", one, {name: array[:4] for name, array in one.items()}) is None
    assert flips("sequence_classification", one, {**one, "label": np.ones(5, int)}) is None
    assert flips("causal_lm", {"log_likelihood": np.zeros(5)}, {"log_likelihood": np.zeros(5)}) is None
    assert flips("sequence_classification", one, one).p_value == 1.0  # type: ignore[union-attr]


def test_class_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score, recall_score

    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, 500), rng.integers(0, 5, 500)
    found = class_scores({"label": label, "prediction": prediction}, 5)
    assert found[4] is None
    scored = [one for one in found if one is not None]
    kwargs: dict[str, Any] = {"average": None, "labels": [0, 1, 2, 3]}
    assert [one.recall for one in scored] == pytest.approx(list(recall_score(label, prediction, **kwargs)))
    assert [one.f1 for one in scored] == pytest.approx(list(f1_score(label, prediction, **kwargs)))
