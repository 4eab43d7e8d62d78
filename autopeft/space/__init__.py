"""What may vary: spaces as data, bound to a model and limits, decoded to configurations.

`resolve` reads a space, `bind` puts it on a model, and a `BoundSpace` gives dimensions, a prior and a total decoder.
"""

from __future__ import annotations

from autopeft.space.bind import bind
from autopeft.space.bound import BoundSpace
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.space.modules import ModuleMap, Site
from autopeft.space.values import SpaceValues, resolve, validate

__all__ = [
    "BoundSpace",
    "Choice",
    "Configuration",
    "Dimension",
    "ModuleMap",
    "Part",
    "Real",
    "Site",
    "SpaceValues",
    "Training",
    "Values",
    "bind",
    "resolve",
    "validate",
]
