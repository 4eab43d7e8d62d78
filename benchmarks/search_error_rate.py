"""How often whole searches err: the real controller, strategies, spaces and journal, on simulated workers.

    python benchmarks/search_error_rate.py [--searches 200] [--only equal planted ...]

Every search runs for ten virtual minutes on two workers on a module map like MiniLM's, with three to five fresh seeds
for each finalist; what its trials would answer is drawn from `autopeft.testing.latent`. Each search has its own seed,
examples and spread over seeds. Settings:

* ``equal``: LoRA against LoRA (A/A), all configurations equally good; also with 200 and 3,100 validation rows, and with
  ``--until decided``;
* ``tuned``: the same where the learning rate and the number of parameters matter, alike for both arms;
* ``shuffled``: labels are noise, every configuration is at chance;
* ``mixtures``: the default space against LoRA, all configurations equally good; also with ``--objective pareto``;
* ``planted``: the default space against LoRA where adapters in the upper half alone are three points better; also with
  3,100 rows, and with ``--until decided``;
* ``within``: ``--within 0.5 --evidence strict`` where smaller adapters are up to a point worse, on 20,000 rows, in five
  times as many searches: few of them pass;
* ``lossy``: the same where everything but LoRA is worse by 0.6 points, so that every ``within`` is wrong.

The seeds of a configuration spread by 0.3 to 1.5 points (each configuration by another number); by 0.2 to 0.6 in
``planted``, and by 0.1 to 0.3 in the last two: a margin of half a point cannot be shown where seeds spread more.

Columns: how the searches ended; ``wrong``, verdicts that the finalists' true qualities refute (``better`` or ``worse``
with the other sign, ``within`` though it is worse by more than the margin); ``outside``, the last of these alone;
``gap``, mean true difference between the finalists in points; ``saved``, mean share of adapter parameters saved where
the verdict is ``within``. The outcome is written to ``results/search_error_rate.json``, and
`autopeft.evidence.calibration` repeats it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.journal import SearchLog
from autopeft.methods import METHODS
from autopeft.space.configuration import WHOLE, Configuration
from autopeft.space.modules import ModuleMap
from autopeft.spec import Budget
from autopeft.testing.latent import ACCURACY, SPREADS, LatentAnswers, spread_of
from autopeft.testing.searches import simulated_search
from autopeft.testing.worlds import SyntheticWorld

RESULTS = Path(__file__).parent / "results" / "search_error_rate.json"
VERDICTS = ("better", "within", "tie", "worse", "unconfirmed")
BUDGET = Budget(max_adapter_params=0.01, max_time=600.0)
SHARE = (0.0002, 0.01)
"""Shares of the base between which adapters of the spaces lie."""
GAIN, LOSS = 0.03, 0.01
Quality = Callable[[Configuration, ModuleMap], float]


def equal(configuration: Configuration, modules: ModuleMap) -> float:
    """As good as any."""
    return ACCURACY


def tuned(configuration: Configuration, modules: ModuleMap) -> float:
    """Less by two points for every factor of e in the learning rate, and by up to two for too few parameters."""
    off = [abs(math.log(rate / METHODS[method].rate.default)) for method, rate in configuration.training.rates]
    return ACCURACY - 0.02 * min(2.0, max(off)) - 0.02 * (1 - size(configuration, modules))


def chance(configuration: Configuration, modules: ModuleMap) -> float:
    """Nothing can be learnt."""
    return 0.5


def planted(configuration: Configuration, modules: ModuleMap) -> float:
    """More by `GAIN` where nothing below the middle is adapted, which no configuration of the LoRA space does."""
    blocks = {site.name: site.block for site in modules.sites}
    lowest = min(blocks[name] if name != WHOLE else 0 for name, _ in configuration.sites)
    return ACCURACY + GAIN * (lowest >= modules.blocks / 2)


def lossy(configuration: Configuration, modules: ModuleMap) -> float:
    """Less by up to `LOSS`, in proportion to the logarithm of the adapter's size."""
    return ACCURACY - LOSS * (1 - size(configuration, modules))


def worse(configuration: Configuration, modules: ModuleMap) -> float:
    """Less by 0.6 points for everything but LoRA: outside of a margin of half a point."""
    return ACCURACY - 0.006 * (not configuration.plain_lora)


def size(configuration: Configuration, modules: ModuleMap) -> float:
    """Where the adapter's size lies between those of `SHARE`, in [0, 1] on a log scale."""
    low, high = (math.log(share * modules.base_params) for share in SHARE)
    return min(1.0, max(0.0, (math.log(configuration.adapter_params(modules)) - low) / (high - low)))


@dataclass(frozen=True)
class Setting:
    """What is true in a world, and what is asked for.

    Attributes:
        quality: Configuration -> its expected accuracy.
        space: The user's space.
        rows: Validation rows.
        margin: Of ``--within``, as a share of 1.
        example_share: As `autopeft.testing.latent.Latent`: models of noise agree little.
        spreads: Points between which the spread over seeds lies.
        evidence: Of ``--evidence``.
        until_decided: ``--until decided``.
        objective: Of ``--objective``.
        times: So many times the searches that are asked for are run.
    """

    quality: Quality
    space: str = "lora"
    rows: int = 872
    margin: float | None = None
    example_share: float = 0.75
    spreads: tuple[float, float] = SPREADS
    evidence: str = "standard"
    until_decided: bool = False
    objective: str = "best"
    times: int = 1


EQUAL = Setting(equal)
PLANTED = Setting(planted, space="hybrid", spreads=(0.2, 0.6))
WITHIN = Setting(lossy, space="hybrid", rows=20_000, margin=0.005, spreads=(0.1, 0.3), evidence="strict")
SETTINGS: dict[str, Setting] = {
    "equal": EQUAL,
    "equal, 200 rows": replace(EQUAL, rows=200),
    "equal, 3100 rows": replace(EQUAL, rows=3100),
    "equal, decided": replace(EQUAL, until_decided=True),
    "tuned": replace(EQUAL, quality=tuned),
    "shuffled": replace(EQUAL, quality=chance, example_share=0.25),
    "mixtures": replace(EQUAL, space="hybrid"),
    "mixtures, pareto": replace(EQUAL, space="hybrid", objective="pareto"),
    "planted": PLANTED,
    "planted, 3100 rows": replace(PLANTED, rows=3100),
    "planted, decided": replace(PLANTED, until_decided=True),
    "within": replace(WITHIN, times=5),
    "lossy": replace(WITHIN, quality=worse),
}


def minilm_map() -> ModuleMap:
    """The module map of an encoder of MiniLM's shape, read off a model without weights."""
    import torch
    from transformers import BertConfig, BertModel

    from autopeft.inspect import module_map

    with torch.device("meta"):
        model = BertModel(
            BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_attention_heads=12)
        )
    return module_map(model.eval())


@dataclass(frozen=True)
class Found:
    """How one search ended.

    Attributes:
        verdict: Its name.
        true: True difference of the finalists, challenger less baseline, of accuracy.
        wrong: Whether the truth refutes the verdict.
        saved: Share of the baseline's adapter parameters that the challenger saves.
        trials: Trials trained.
    """

    verdict: str
    true: float
    wrong: bool
    saved: float
    trials: int


def search(setting: Setting, modules: ModuleMap, seed: int) -> Found:
    """One whole search in a world of its own."""
    answers = LatentAnswers(setting.rows, seed, lambda made: spread_of(made, setting.spreads), setting.example_share)
    world = SyntheticWorld(lambda made: setting.quality(made, modules), rows=setting.rows, answers=answers)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        log = simulated_search(
            Path(folder) / "run",
            world,
            BUDGET,
            modules=modules,
            space=setting.space,
            evidence=setting.evidence,
            margin=setting.margin,
            until_decided=setting.until_decided,
            objective=setting.objective,
            seed=seed,
        )
    return judged(log, setting, modules)


def judged(log: SearchLog, setting: Setting, modules: ModuleMap) -> Found:
    """The verdict against the truth."""
    if log.finalists is None or log.verdict is None:
        raise SystemExit("a simulated search came to no verdict")
    ours, theirs = (
        Configuration.from_dict(log.configurations[log.finalists[role]].configuration)
        for role in ("challenger", "baseline")
    )
    true = setting.quality(ours, modules) - setting.quality(theirs, modules)
    name = log.verdict["name"]
    refuted = {"better": true <= 0, "worse": true >= 0, "within": true < -(setting.margin or 0.0)}
    saved = 1 - ours.adapter_params(modules) / theirs.adapter_params(modules)
    return Found(name, true, refuted.get(name, False), saved, len(log.trials))


def summary(found: list[Found], seconds: float) -> dict[str, Any]:
    """What is kept of a setting."""
    saved = [each.saved for each in found if each.verdict == "within"]
    return {
        "searches": len(found),
        "verdicts": {name: sum(each.verdict == name for each in found) for name in VERDICTS},
        "wrong": sum(each.wrong for each in found),
        "outside": sum(each.wrong for each in found if each.verdict == "within"),
        "gap": round(float(np.mean([each.true for each in found])), 5),
        "saved": round(float(np.mean(saved)), 4) if saved else None,
        "trials": round(float(np.mean([each.trials for each in found])), 1),
        "seconds": round(seconds, 1),
    }


def row(name: str, kept: dict[str, Any]) -> str:
    """A setting as a line of the table."""
    counts = [kept["verdicts"][verdict] for verdict in VERDICTS]
    saved = "-" if kept["saved"] is None else f"{kept['saved']:.0%}"
    cells = [*counts, kept["wrong"], kept["outside"], f"{100 * kept['gap']:+.2f}", saved, round(kept["seconds"])]
    return f"{name:<20}" + "".join(f"{cell:>9}" for cell in cells)


def main() -> None:
    """Run the settings, print the table, keep the counts."""
    parser = argparse.ArgumentParser(description="Error rates of whole searches on simulated workers.")
    parser.add_argument("--searches", type=int, default=200, help="searches in each setting")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    arguments = parser.parse_args()
    modules = minilm_map()
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    heads = (*VERDICTS, "wrong", "outside", "gap", "saved", "seconds")
    print(" " * 20 + "".join(f"{head[:8]:>9}" for head in heads))
    for name in arguments.only:
        began = time.perf_counter()
        setting = SETTINGS[name]
        found = [search(setting, modules, seed) for seed in range(arguments.searches * setting.times)]
        kept[name] = summary(found, time.perf_counter() - began)
        print(row(name, kept[name]), flush=True)
        RESULTS.write_text(json.dumps({name: kept[name] for name in SETTINGS if name in kept}, indent=2) + "\n")


if __name__ == "__main__":
    main()
