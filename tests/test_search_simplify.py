"""What does not earn its place in the challenger goes, before fresh seeds judge it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from space_models import bert
from test_search_simulated import Bench

from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.methods import METHODS
from autopeft.search.ledger import Ledger
from autopeft.search.phases.simplify import SEED
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.space.simplify import simpler, without
from autopeft.spec import Budget
from autopeft.strategy.jobs import Job, Outcome, Train
from autopeft.testing.worlds import SyntheticWorld

UPPER = 4
"""First block of the upper third of the six."""
BUDGET = Budget(max_adapter_params=0.01, max_trials=40)


def _mixed() -> Configuration:
    modules = bert()
    sites: dict[str, list[Part]] = {}
    for site in modules.sites:
        if site.role == "query":
            sites.setdefault(site.name, []).append(Part.of("lora", METHODS["lora"].knobs(site, 2)))
        if site.role == "query" and site.block >= UPPER:
            sites[site.name].append(Part.of("ssf", METHODS["ssf"].knobs(site)))
    return Configuration.of(sites, Training((("lora", 3e-3), ("ssf", 1e-3)), 1e-3, 16))


def test_each_method_can_go_at_each_depth() -> None:
    modules, configuration = bert(), _mixed()
    groups = simpler(configuration, modules)
    assert set(groups) == {
        *(f"lora in the {depth} third" for depth in ("lower", "middle", "upper")),
        "ssf in the upper third",
    }
    left = without(configuration, modules, [groups["ssf in the upper third"]])
    assert left.methods == ("lora",)
    assert left.training.rates == (("lora", 3e-3),)
    assert len(left.sites) == len(configuration.sites)
    blocks = {site.name: site.block for site in modules.sites}
    left = without(configuration, modules, [groups["lora in the upper third"]])
    assert {part.method for name, part in left.parts() if blocks[name] >= UPPER} == {"ssf"}
    assert len(list(left.parts())) == len(list(configuration.parts())) - 2


def test_what_the_target_could_not_load_is_not_offered() -> None:
    modules, configuration = bert(), _mixed()
    # Merged, each of the two is as good as both; plain peft knows no SSF.
    assert len(simpler(configuration, modules, "merged")) == 4
    assert "lora in the upper third" in simpler(configuration, modules, "peft")
    assert simpler(without(configuration, modules, [("lora", "lower third"), ("lora", "middle third")]), modules) == {
        "lora in the upper third": ("lora", "upper third"),
        "ssf in the upper third": ("ssf", "upper third"),
    }


def test_one_group_has_nothing_to_lose() -> None:
    modules = bert()
    alone = without(_mixed(), modules, [("lora", f"{depth} third") for depth in ("lower", "middle", "upper")])
    assert simpler(alone, modules) == {}


def only_above(configuration: Configuration) -> float:
    """What counts is that there is something in the upper third."""
    modules = bert()
    return 0.92 if any(modules[name].block >= UPPER for name, _ in configuration.parts()) else 0.80


@pytest.fixture(scope="module")
def simplified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchLog, SyntheticWorld]:
    folder = tmp_path_factory.mktemp("simplified") / "run"
    world = SyntheticWorld(only_above, rows=2000, seed_noise=0.001)
    return folder, Bench(folder, world, BUDGET).run(), world


def test_the_rest_goes_and_the_finalist_is_what_is_left(simplified: tuple[Path, SearchLog, SyntheticWorld]) -> None:
    folder, log, world = simplified
    assert log.simplified is not None
    assert log.simplify is not None
    modules = bert()
    assert log.finalists is not None
    assert log.finalists["challenger"] == log.simplified["takes"] != log.simplified["challenger"]
    before, after = (log.configurations[log.simplified[name]] for name in ("challenger", "takes"))
    assert after.adapter_params < before.adapter_params
    assert only_above(Configuration.from_dict(after.configuration)) > 0.9
    for label, (difference, error) in log.simplified["differences"].items():
        if label in log.simplified["dropped"]:
            assert difference >= -error
    kept = {(p.method, modules[n].block // 2) for n, p in Configuration.from_dict(after.configuration).parts()}
    whole = {(p.method, modules[n].block // 2) for n, p in Configuration.from_dict(before.configuration).parts()}
    assert len(kept) == len(whole) - len(log.simplified["dropped"])
    runs = [job for job in world.jobs if isinstance(job, Train) and log.trials[job.trial].purpose == "simplify"]
    # A seed that chose nothing: neither one of the exploration nor a finalist's.
    (seed,) = {job.seed for job in runs}
    assert seed not in {t.seed for t in log.trials.values() if t.purpose != "simplify"}
    assert log.simplify["challenger"] in {log.trials[job.trial].hash for job in runs}
    assert {job.rows_to for job in runs} == {log.plan["rungs"][-1]}
    # Before the finalists' fresh seeds.
    order = [record.type for record in read_journal(folder)]
    assert order.index("simplify") < order.index("simplified") < order.index("finalists")


def test_its_time_is_kept_free_at_the_end_of_the_exploration(tmp_path: Path) -> None:
    world = SyntheticWorld(only_above, rows=2000, seconds_per_row=0.02)
    log = Bench(tmp_path / "run", world, Budget(max_adapter_params=0.01, max_time=9000.0)).run()
    assert log.simplified is not None
    named = next(r.used for r in read_journal(tmp_path / "run") if r.type == "finalists")
    # What runs when it ends may end later.
    assert named <= 1.1 * log.plan["explore_until"]
    assert log.used <= 9000
    assert len(log.finalists["seeds"]) >= 3


@pytest.mark.parametrize("margin", [None, 0.002])
def test_what_goes_costs_at_most_one_standard_error_and_half_of_the_margin(
    tmp_path: Path, margin: float | None
) -> None:
    log = Bench(tmp_path / "run", SyntheticWorld(only_above, rows=2000), BUDGET, margin=margin).run()
    assert log.simplified is not None
    for label in log.simplified["dropped"]:
        difference, error = log.simplified["differences"][label]
        assert difference >= -(error if margin is None else min(error, margin / 2))
    for label, (difference, error) in log.simplified["differences"].items():
        if difference < -(error if margin is None else min(error, margin / 2)):
            assert label not in log.simplified["dropped"]


class Slower(SyntheticWorld):
    """The runs without parts take four times as long as anything before let expect."""

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        unexpected = isinstance(job, Train) and job.seed == SEED
        return replace(made, seconds=4 * made.seconds) if made is not None and unexpected else made


def test_it_ends_in_time_where_it_takes_longer_than_expected(tmp_path: Path) -> None:
    world = Slower(only_above, rows=2000, seconds_per_row=0.006)
    log = Bench(tmp_path / "run", world, Budget(max_adapter_params=0.01, max_time=9000.0)).run()
    assert log.simplify is not None
    assert log.simplified is not None
    ran = [t for t in log.trials.values() if t.purpose == "simplify"]
    assert 0 < len(ran) < 1 + len(log.simplify["drops"])
    assert log.used <= 9000
    assert log.verdict is not None


def test_a_part_that_matters_stays(tmp_path: Path) -> None:
    modules = bert()

    def every_third(configuration: Configuration) -> float:
        return 0.7 + 0.08 * len({modules[name].block // 2 for name, _ in configuration.parts()})

    world = SyntheticWorld(every_third, rows=2000, seed_noise=0.001)
    log = Bench(tmp_path / "run", world, BUDGET).run()
    assert log.simplified is not None
    taken = Configuration.from_dict(log.configurations[log.simplified["takes"]].configuration)
    assert every_third(taken) == pytest.approx(0.94)


@pytest.mark.parametrize(
    ("budget", "evidence"),
    [(Budget(max_time=300.0), "standard"), (Budget(max_trials=6), "standard"), (Budget(max_trials=40), "quick")],
)
def test_without_time_for_it_nothing_is_tried(tmp_path: Path, budget: Budget, evidence: str) -> None:
    world = SyntheticWorld(only_above, rows=2000)
    log = Bench(tmp_path / "run", world, budget, evidence=evidence).run()
    assert log.simplify is None
    assert log.verdict is not None


def test_it_goes_on_after_a_crash(simplified: tuple[Path, SearchLog, SyntheticWorld], tmp_path: Path) -> None:
    _, whole, world = simplified
    first = next(
        n
        for n, job in enumerate(world.jobs)
        if isinstance(job, Train) and whole.trials[job.trial].purpose == "simplify"
    )
    again = SyntheticWorld(only_above, rows=2000, seed_noise=0.001)
    bench = Bench(tmp_path / "run", again, BUDGET)
    with pytest.raises(KeyboardInterrupt):
        bench.run(stop_after=first + 2)
    cut = SearchLog.fold(read_journal(tmp_path / "run"))
    assert cut.simplify is not None
    assert cut.simplified is None
    log = bench.run(resume=True)
    assert log.simplified is not None
    assert whole.simplified is not None
    assert set(log.simplified["differences"]) >= set((log.simplify or {})["drops"])
    assert log.simplified["takes"] == whole.simplified["takes"]


def test_what_was_found_out_holds_when_the_search_is_given_more(
    simplified: tuple[Path, SearchLog, SyntheticWorld], tmp_path: Path
) -> None:
    folder, before, _ = simplified
    shutil.copytree(folder, tmp_path / "run")
    with Journal.resume(tmp_path / "run") as journal:
        Ledger(journal).write("finished", status="found", result={})
    # Nothing better is to be had, and there is no room to try the parts of anything again.
    world = SyntheticWorld(lambda configuration: 0.6, rows=2000)
    log = Bench(tmp_path / "run", world, replace(BUDGET, max_trials=41), evidence="quick").run(resume=True)
    assert before.finalists is not None
    assert log.finalists is not None
    assert log.finalists["challenger"] == before.finalists["challenger"]
    assert [t.id for t in log.trials.values() if t.purpose == "simplify"] == [
        t.id for t in before.trials.values() if t.purpose == "simplify"
    ]
