"""The finalists row by row: flipped rows, classes, eval sets, and every prediction as a table.

All of it is about one run of each: those whose weights stand for them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from safetensors import SafetensorError

from autopeft.data.encoded import Array
from autopeft.evidence import class_rows, class_scores, flips
from autopeft.journal import SearchLog, TrialLog
from autopeft.search.division import Division
from autopeft.search.finals import ROLES, Finals, Role
from autopeft.search.ledger import Ledger
from autopeft.trial.checkpoint import read_arrays
from autopeft.trial.evaluate import chosen_rows

MOST_CLASSES = 1000
"""Classes that are told apart, the largest first: a result is no place for more."""
PREDICTIONS = "predictions"
Outputs = dict[str, Array]


class FinalRows:
    """What is known of winner and opponent on every row. Final.

    Args:
        ledger: Journal and fold.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._log: SearchLog = ledger.log
        self._folder = Path(ledger.journal.folder)
        self._runs: dict[Role, TrialLog] = {}
        if self._log.plan and self._log.verdict is not None:
            finals = Finals(ledger, Division.from_dict(self._log.plan), tuple(ROLES))
            self._runs = finals.best_runs()
        takes = (self._log.verdict or {}).get("takes")
        self.winner: Role = "challenger" if takes == "challenger" else "baseline"
        self.opponent: Role = "baseline" if self.winner == "challenger" else "challenger"

    def outputs(self, split: str) -> dict[str, Outputs]:
        """``winner`` and ``opponent`` -> its per-example outputs; those that nobody kept are left out.

        Args:
            split: ``validation``, ``test``, or the name of an eval set.
        """
        found: dict[str, Outputs] = {}
        for name, role in (("winner", self.winner), ("opponent", self.opponent)):
            file = self._file(split, role)
            if file is None:
                continue
            try:
                found[name] = read_arrays(self._folder / file)
            except (OSError, SafetensorError):
                # A run folder may have been thinned out; what is left is told.
                continue
        return found

    def compared(self) -> tuple[str, dict[str, Outputs]]:
        """The test rows where both have outputs on them, else the validation rows; and the outputs."""
        tested = self.outputs("test")
        return ("test", tested) if len(tested) == 2 else ("validation", self.outputs("validation"))

    def flips(self) -> dict[str, Any] | None:
        """Rows that one of the two gets right and the other wrong; None where that cannot be said."""
        split, outputs = self.compared()
        if len(outputs) < 2:
            return None
        found = flips(self._kind, outputs["winner"], outputs["opponent"])
        return None if found is None else {"split": split, "opponent": self.opponent, **found.to_dict()}

    def slices(self) -> dict[str, Any] | None:
        """Recall and F1 of each class, the largest class first; None where there are no classes."""
        split, outputs = self.compared()
        if self._kind != "sequence_classification" or "winner" not in outputs:
            return None
        label = outputs["winner"]["label"]
        count = max(len(self._names), int(label.max()) + 1)
        scores = {name: class_scores(arrays, count) for name, arrays in outputs.items()}
        rows = class_rows(label, count)
        order = sorted((number for number in range(count) if rows[number]), key=lambda number: -rows[number])
        classes = [
            {
                "label": self._name(number),
                "rows": rows[number],
                **{name: _score(scores, name, number) for name in ("winner", "opponent")},
            }
            for number in order[:MOST_CLASSES]
        ]
        return {"split": split, "classes": classes, "left_out": len(order) - len(classes)}

    def eval_sets(self) -> dict[str, Any]:
        """Eval set -> its rows, how many were read, and the metrics of each that was evaluated on it."""
        found: dict[str, Any] = {}
        for name, known in self._log.eval_sets.items():
            fresh = {role: data for role in (*ROLES.values(), "incumbent") if (data := self._evaluated(name, role))}
            metrics = {role: dict(data["metrics"]) or None for role, data in fresh.items()}
            found[name] = {
                "rows": known["rows"],
                "evaluated": max((data["rows"] for data in fresh.values() if data["metrics"]), default=0),
                "winner": metrics.get(self.winner) if self._runs else None,
                **{role: metrics.get(role) for role in ("baseline", "challenger", "incumbent")},
            }
        return found

    def write(self) -> dict[str, str]:
        """Write every prediction as parquet: one file for each split and eval set, complete or not at all.

        Returns:
            Name -> path relative to the run folder.
        """
        written: dict[str, str] = {}
        for split in ("validation", "test", *self._log.eval_sets):
            outputs = self.outputs(split)
            if not outputs:
                continue
            path = f"{PREDICTIONS}/{split}.parquet"
            (self._folder / PREDICTIONS).mkdir(exist_ok=True)
            half = self._folder / f"{PREDICTIONS}/.{split}.{os.getpid()}"
            pyarrow.parquet.write_table(self._table(split, outputs), half)
            os.replace(half, self._folder / path)
            written[split] = path
        return written

    def _table(self, split: str, outputs: Mapping[str, Outputs]) -> pa.Table:
        sizes = [len(array) for arrays in outputs.values() for array in arrays.values()]
        known = self._log.eval_sets.get(split, {}).get("rows") or self._task.get("rows", {}).get(split)
        total = max([*sizes, int(known or 0)])
        seen = np.zeros(total, dtype=bool)
        columns: dict[str, pa.Array] = {}
        for name, arrays in outputs.items():
            for array_name, array in arrays.items():
                # Answers are generated for fewer rows than likelihoods are computed for.
                rows = chosen_rows(total, len(array))
                seen[rows] = True
                column = array_name if array_name == "label" else f"{name}_{array_name}"
                values, mask = np.zeros(total, dtype=array.dtype), np.ones(total, dtype=bool)
                values[rows], mask[rows] = array, False
                if column == "label" and column in columns:
                    # Where the two were judged on different rows, each knows labels of its own.
                    own = self._column(array_name, values, mask)
                    columns[column] = pc.coalesce(columns[column], own)
                    continue
                columns[column] = self._column(array_name, values, mask)
        first = {"row": pa.array(np.arange(total))}
        label = {"label": columns.pop("label")} if "label" in columns else {}
        return pa.table({**first, **label, **columns}).filter(pa.array(seen))

    def _column(self, name: str, values: Array, mask: Array) -> pa.Array:
        if name == "exact":
            return pa.array(values > 0.5, mask=mask)
        if self._kind == "sequence_classification" and name in ("label", "prediction"):
            texts = [self._name(number) for number in values.tolist()]
            return pa.array(texts, pa.string(), mask=mask)
        return pa.array(values, mask=mask)

    def _file(self, split: str, role: Role) -> str | None:
        run = self._runs.get(role)
        if run is None:
            return None
        if split == "validation":
            return run.rungs[-1].outputs
        data = self._log.tests.get(role) if split == "test" else self._evaluated(split, role)
        # A search that was given more may have another run of the same role since.
        if not data or data["sha256"] != run.rungs[-1].sha256:
            return None
        file: str | None = data["outputs"]
        return file

    def _evaluated(self, name: str, role: str) -> dict[str, Any] | None:
        """The evaluation of the weights that stand for a role now."""
        data = self._log.evaluations.get(name, {}).get(role)
        run = self._runs.get(role)  # type: ignore[call-overload]
        sha256 = None if run is None else run.rungs[-1].sha256
        return data if data is not None and data["sha256"] == sha256 else None

    @property
    def _task(self) -> dict[str, Any]:
        task: dict[str, Any] = self._log.header.get("task", {})
        return task

    @property
    def _kind(self) -> str:
        return str(self._task.get("kind"))

    @property
    def _names(self) -> list[str]:
        return list(self._task.get("label_names") or ())

    def _name(self, number: int) -> str:
        return str(self._names[number]) if 0 <= number < len(self._names) else str(number)


def _score(scores: Mapping[str, list[Any]], name: str, number: int) -> dict[str, float] | None:
    found = scores[name][number] if name in scores else None
    return None if found is None else {"recall": found.recall, "f1": found.f1}
