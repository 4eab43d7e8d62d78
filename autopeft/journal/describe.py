"""A configuration in the few words and numbers by which people compare configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.methods import METHODS

RANK = "r"
"""The knob that is a rank."""
WHOLE = ""
"""The site of a method about the whole model."""


@dataclass(frozen=True, slots=True)
class Description:
    """What lists and charts show of a configuration.

    Attributes:
        methods: The methods in the order of the table, e.g. ``lora+bias``; ``none`` for a configuration without parts.
        total_rank: Sum of the ranks of all low-rank parts; 0 without one.
        layers: The blocks that carry parts, e.g. ``3-5 of 6``; empty when the module map is unknown.
        n_layers: How many blocks these are; 0 when the module map is unknown.
        sites: How many modules carry parts.
        rates: Method -> peak learning rate, in the order of `methods`.
        rate: The rate of the first method; 0 without parts.
        head_rate: Peak learning rate of the head.
        batch_size: Rows per optimizer step.
        dropout: Dropout before adapter parts.
    """

    methods: str
    total_rank: int
    layers: str
    n_layers: int
    sites: int
    rates: Mapping[str, float]
    rate: float
    head_rate: float
    batch_size: int
    dropout: float


def describe(configuration: Mapping[str, Any], modules: Mapping[str, Any] | None = None) -> Description:
    """Describe a configuration.

    Args:
        configuration: As `Configuration.to_dict` writes it.
        modules: As `ModuleMap.to_dict` writes it; None leaves the layers out.
    """
    sites: Mapping[str, Any] = configuration.get("sites", {})
    training: Mapping[str, Any] = configuration.get("training", {})
    parts = [part for site in sites.values() for part in site]
    used = {str(part["method"]) for part in parts}
    # The order of the table, so that a mix has one spelling whatever its sizes.
    order = [*(name for name in METHODS if name in used), *sorted(used - METHODS.keys())]
    given: Mapping[str, float] = training.get("rates", {})
    rates = {name: float(given[name]) for name in order if name in given}
    blocks = {site["name"]: int(site["block"]) for site in modules["sites"]} if modules else {}
    total = int(modules["blocks"]) if modules else 0
    adapted = list(range(total)) if WHOLE in sites else sorted({blocks[name] for name in sites if name in blocks})
    return Description(
        methods="+".join(order) or "none",
        total_rank=sum(int(part[RANK]) for part in parts if RANK in part),
        layers=f"{ranges(adapted)} of {total}" if adapted else "",
        n_layers=len(adapted),
        sites=len(sites),
        rates=rates,
        rate=next(iter(rates.values()), 0.0),
        head_rate=float(training.get("head_rate", 0.0)),
        batch_size=int(training.get("batch_size", 0)),
        dropout=float(training.get("dropout", 0.0)),
    )


def ranges(numbers: Iterable[int]) -> str:
    """Ascending whole numbers in short: ``0-2,5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
