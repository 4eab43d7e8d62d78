"""What a configuration can do without: itself, less one method at one depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part
from autopeft.space.modules import ModuleMap

__all__ = ["simpler", "without"]

DEPTHS = ("lower third", "middle third", "upper third")
Group = tuple[str, str]
"""A method and a depth."""


def simpler(configuration: Configuration, modules: ModuleMap, target: str = "any") -> dict[str, Group]:
    """The groups of parts that can be dropped one at a time: label -> group.

    A configuration of one group has none to drop, and a method about the whole model is one.

    Args:
        configuration: What was trained.
        modules: The module map of its model.
        target: What must be able to load what is left.
    """
    if configuration.whole is not None:
        return {}
    found = sorted({group for _, group in _grouped(configuration, modules)})
    offered = {f"{method} in the {depth}": (method, depth) for method, depth in found}
    return {
        label: group
        for label, group in offered.items()
        if _loadable(configuration, without(configuration, modules, [group]), target)
    }


def without(configuration: Configuration, modules: ModuleMap, groups: Iterable[Group]) -> Configuration:
    """The configuration without the parts of some groups; nothing else differs.

    Args:
        configuration: What was trained.
        modules: The module map of its model.
        groups: Methods and depths, as `simpler` gives them.
    """
    dropped = set(groups)
    kept: dict[str, list[Part]] = {}
    for (name, part), group in _grouped(configuration, modules):
        if group not in dropped:
            kept.setdefault(name, []).append(part)
    left = Configuration.of(kept, configuration.training)
    rates = tuple((method, rate) for method, rate in configuration.training.rates if method in left.methods)
    return replace(left, training=replace(configuration.training, rates=rates))


def _grouped(configuration: Configuration, modules: ModuleMap) -> list[tuple[tuple[str, Part], Group]]:
    blocks = {site.name: site.block for site in modules.sites}
    count = max(1, modules.blocks)
    return [
        ((name, part), (part.method, DEPTHS[min(2, max(0, 3 * blocks[name] // count))]))
        for name, part in configuration.parts()
    ]


def _loadable(before: Configuration, left: Configuration, target: str) -> bool:
    if not left.sites:
        return False
    # What was admitted only together with another method may not be so alone.
    return target == "any" or left.methods == before.methods or all(target in METHODS[m].targets for m in left.methods)
