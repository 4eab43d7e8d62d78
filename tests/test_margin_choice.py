"""Which adapter a search for the smallest sends to its fresh seeds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from example_search import division

from autopeft.journal import SearchLog, TrialLog
from autopeft.journal.log import ConfigurationLog, RungLog
from autopeft.search.finals import Finals
from autopeft.search.ledger import Ledger

LORA = ("lora", 50_000, 0.80)


def challenger(margin: float | None, *space: tuple[str, int, float]) -> str:
    log = SearchLog(header={"task": {"metric": "accuracy"}, "procedure": {"margin": margin}})
    for number, (name, params, score) in enumerate((LORA, *space)):
        arm = "baseline" if name == "lora" else "space"
        log.configurations[name] = ConfigurationLog(name, {}, {"x": 1}, params, arm)
        trial = TrialLog(f"t{number}", name, arm, "explore", 0, number, 0)
        trial.rungs.append(RungLog(2, 9000, {"accuracy": score}))
        log.trials[trial.id] = trial
        log.index.start(trial)
        log.index.update(trial, "accuracy", params)
    ledger = cast(Ledger, SimpleNamespace(log=log))
    return Finals(ledger, division(), ("baseline", "space")).explored()["challenger"].hash


@pytest.mark.parametrize(
    ("small", "chosen"),
    [(0.811, "small"), (0.799, "small"), (0.791, "small"), (0.789, "middle"), (0.775, "middle")],
)
def test_the_smallest_that_seems_to_keep_half_of_the_margin(small: float, chosen: str) -> None:
    # Two points of margin: 0.79 is what must be seemed to keep.
    space = (("large", 90_000, 0.83), ("middle", 20_000, 0.795), ("small", 900, small))
    assert challenger(0.02, *space) == chosen
    assert challenger(None, *space) == "large"


def test_where_none_seems_to_keep_it_the_best_of_the_smaller_ones() -> None:
    assert challenger(0.02, ("large", 90_000, 0.83), ("middle", 20_000, 0.78), ("small", 900, 0.77)) == "middle"
    assert challenger(0.02, ("large", 90_000, 0.83), ("equal", 50_000, 0.80)) == "large"
