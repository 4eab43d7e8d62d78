"""Seconds per row, learned from what ran."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autopeft.cost.time import StepCosts
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.space.modules import ModuleMap, Site

BLOCKS = 6


def _modules() -> ModuleMap:
    sites = []
    for block in range(BLOCKS):
        for role, inputs, outputs in (("query", 64, 64), ("key", 64, 64), ("up", 64, 256), ("down", 256, 64)):
            kv = 64 if role == "key" else None
            sites.append(Site(f"{block}.{role}", block, role, inputs, outputs, True, inputs * outputs, kv_features=kv))
        sites.append(Site(f"{block}.norm", block, "norm", 64, 64, True, 128))
    return ModuleMap(tuple(sites), BLOCKS, 100_000, 64, "bert")


MODULES = _modules()


def _configuration(
    method: str, roles: str = "query key up down norm", start: int = 0, batch: int = 16
) -> Configuration:
    row = METHODS[method]
    sites: dict[str, list[Part]] = {}
    for site in MODULES.select(roles.split()):
        if site.block >= start and row.fits(site):
            sites[site.name] = [Part.of(method, row.knobs(site, 8 if row.size else None))]
    return Configuration.of(sites, Training(((method, 1e-3),), 1e-3, batch))


def _mixed(*ones: Configuration) -> Configuration:
    sites: dict[str, list[Part]] = {}
    for name, part in itertools.chain.from_iterable(one.parts() for one in ones):
        sites.setdefault(name, []).append(part)
    rates = tuple(sorted({rate for one in ones for rate in one.training.rates}))
    return Configuration.of(sites, Training(rates, 1e-3, ones[0].training.batch_size))


PROBE = _configuration("lora")


def _truth(configuration: Configuration) -> float:
    """A machine whose costs differ from the prior's: attention is dear, steps are cheap, DoRA doubles."""
    coefficients = {"lora": 0.5, "dora": 1.6, "ia3": 0.05, "serial": 0.3, "parallel": 0.4, "prefix": 1.5, "bias": 0.3}
    width = sum(s.in_features + s.out_features for s in MODULES.sites if s.role != "norm")
    lowest, total = BLOCKS, 0.2 + 0.01 * 16 / configuration.training.batch_size
    for name, part in configuration.parts():
        site = MODULES[name]
        lowest = min(lowest, site.block)
        total += coefficients.get(part.method, 0.2) * (site.in_features + site.out_features) / width
    return 2e-3 * (total + 0.5 * (1 - lowest / BLOCKS))


def test_nothing_is_predicted_before_the_probe() -> None:
    costs = StepCosts(MODULES)
    with pytest.raises(LookupError, match="speed probe"):
        costs.predict(PROBE, 100)
    costs.observe(PROBE, 100, 1.0)
    with pytest.raises(LookupError, match="evaluate"):
        costs.predict(PROBE, 100, "evaluate")


def test_the_probe_sets_the_scale() -> None:
    costs = StepCosts(MODULES)
    costs.observe(PROBE, 1000, 8.3)
    assert costs.predict(PROBE, 1000) == pytest.approx(8.3, rel=1e-6)
    assert costs.predict(PROBE, 500) == pytest.approx(4.15, rel=1e-6)


def test_what_trains_less_takes_less() -> None:
    costs = StepCosts(MODULES)
    costs.observe(PROBE, 1000, 8.3)
    whole = costs.predict(PROBE, 1000)
    upper = costs.predict(_configuration("lora", start=4), 1000)
    attention = costs.predict(_configuration("lora", "query key"), 1000)
    nothing = costs.predict(Configuration((), PROBE.training), 1000)
    assert nothing < upper < attention < whole
    assert costs.predict(_configuration("dora"), 1000) > whole > costs.predict(_configuration("ia3"), 1000)
    assert costs.predict(_configuration("lora", batch=4), 1000) > whole


def test_observations_correct_the_prior() -> None:
    rng = np.random.default_rng(0)
    methods = ("lora", "dora", "ia3", "serial", "parallel", "prefix", "bias", "layernorm")
    pool = [_configuration(m, start=s, batch=b) for m, s, b in itertools.product(methods, (0, 2, 4), (8, 16, 32))]
    pool += [_mixed(one, other) for one, other in itertools.pairwise(pool)]
    rng.shuffle(pool)  # type: ignore[arg-type]
    seen, unseen = pool[:40], pool[40:]

    costs = StepCosts(MODULES)
    costs.observe(PROBE, 1000, 1000 * _truth(PROBE))

    def error() -> float:
        return float(np.median([abs(costs.predict(c, 1) / _truth(c) - 1) for c in unseen]))

    before = error()
    for configuration in seen:
        costs.observe(configuration, 500, 500 * _truth(configuration) * rng.lognormal(0, 0.05))
    after = error()
    assert costs.observed() == 41
    assert before > 0.1
    assert after < 0.4 * before


def test_a_mix_of_methods_keeps_a_ratio_of_its_own() -> None:
    costs = StepCosts(MODULES)
    mix = _mixed(_configuration("lora", "query key"), _configuration("bias", "down"))
    for start in range(4):
        one = _configuration("lora", start=start)
        costs.observe(one, 100, 100 * _truth(one))
    for _ in range(6):
        costs.observe(mix, 100, 180 * _truth(mix))
    assert costs.predict(mix, 1) == pytest.approx(1.8 * _truth(mix), rel=0.1)
    assert costs.predict(PROBE, 1) == pytest.approx(_truth(PROBE), rel=0.2)


def test_one_disturbed_job_does_not_move_the_scale() -> None:
    costs = StepCosts(MODULES)
    for _ in range(8):
        costs.observe(PROBE, 100, 100 * _truth(PROBE))
    costs.observe(PROBE, 100, 1000 * _truth(PROBE))
    assert costs.predict(PROBE, 1) == pytest.approx(_truth(PROBE), rel=0.35)


def test_empty_observations_are_ignored_and_equal_ones_give_equal_predictions() -> None:
    one, other = StepCosts(MODULES), StepCosts(MODULES)
    for costs in (one, other):
        costs.observe(PROBE, 0, 1.0)
        costs.observe(PROBE, 10, 0.0)
        costs.observe(PROBE, 10, float("nan"))
        assert costs.observed() == 0
        costs.observe(PROBE, 10, 1.0, "evaluate")
        costs.observe(_configuration("ia3"), 10, 0.7, "evaluate")
        assert costs.observed("evaluate") == 2
    assert one.predict(_configuration("prefix"), 7, "evaluate") == other.predict(
        _configuration("prefix"), 7, "evaluate"
    )
