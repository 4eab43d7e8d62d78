"""A configuration: exactly what is trained, as one immutable, canonical, hashable value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autopeft.methods import METHODS
from autopeft.space.modules import ModuleMap

Scalar = int | float | str | bool
WHOLE = ""
"""The site of a method about the whole model."""


def canonical_json(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """The sha256 of a plain value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Part:
    """One method at one module, with its knobs sorted by name."""

    method: str
    knobs: tuple[tuple[str, Scalar], ...] = ()

    @classmethod
    def of(cls, method: str, knobs: Mapping[str, Scalar]) -> Part:
        """A part from a mapping of knobs."""
        return cls(method, tuple(sorted(knobs.items())))

    def __getitem__(self, knob: str) -> Scalar:
        return dict(self.knobs)[knob]

    @property
    def size(self) -> int | None:
        """The value of the method's size knob, or None when it has none."""
        knob = METHODS[self.method].size
        return None if knob is None else int(dict(self.knobs)[knob])

    def to_dict(self) -> dict[str, Scalar]:
        """``{"method": ..., knob: value, ...}``."""
        return {"method": self.method, **dict(self.knobs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Scalar]) -> Part:
        """The inverse of `to_dict`."""
        knobs = dict(values)
        return cls.of(str(knobs.pop("method")), knobs)


@dataclass(frozen=True, slots=True)
class Training:
    """Hyperparameters of training that a space varies.

    Attributes:
        rates: Peak learning rate of AdamW for the parts of each method, sorted by method.
        head_rate: Peak learning rate of the head.
        batch_size: Rows per optimizer step.
        dropout: Dropout on the input of adapter parts, in [0, 1).
    """

    rates: tuple[tuple[str, float], ...]
    head_rate: float
    batch_size: int
    dropout: float = 0.0

    def rate(self, method: str) -> float:
        """The peak learning rate of a method's parts."""
        return dict(self.rates)[method]


@dataclass(frozen=True)
class Configuration:
    """What one trial trains.

    Attributes:
        sites: `(full module name, parts from inner to outer)`, sorted by name. The name ``""`` is the whole model.
        training: The hyperparameters.
    """

    sites: tuple[tuple[str, tuple[Part, ...]], ...]
    training: Training

    @classmethod
    def of(cls, sites: Mapping[str, Sequence[Part]], training: Training) -> Configuration:
        """A configuration from a mapping; empty sites are left out."""
        kept = {name: tuple(parts) for name, parts in sites.items() if parts}
        return cls(tuple(sorted(kept.items())), training)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every `(module name, part)`."""
        for name, parts in self.sites:
            for part in parts:
                yield name, part

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The methods used, sorted."""
        return tuple(sorted({part.method for _, part in self.parts()}))

    @property
    def whole(self) -> Part | None:
        """The part of a method about the whole model, which then is the only one; None for parts on single modules."""
        alone = self.sites and self.sites[0][0] == WHOLE
        return self.sites[0][1][0] if alone else None

    @property
    def plain_lora(self) -> bool:
        """Whether it is LoRA and nothing else."""
        return self.methods == ("lora",)

    def adapter_params(self, modules: ModuleMap) -> int:
        """Adapter parameters, exactly, by the formulas of the table."""
        by_name: dict[str, Any] = {WHOLE: modules, **{site.name: site for site in modules.sites}}
        return sum(METHODS[part.method].count(by_name[name], dict(part.knobs)) for name, part in self.parts())

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON and YAML."""
        return {
            "sites": {name: [part.to_dict() for part in parts] for name, parts in self.sites},
            "training": {
                "rates": dict(self.training.rates),
                "head_rate": self.training.head_rate,
                "batch_size": self.training.batch_size,
                "dropout": self.training.dropout,
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Configuration:
        """The inverse of `to_dict`."""
        training = dict(values["training"])
        rates = tuple(sorted((str(k), float(v)) for k, v in training.pop("rates").items()))
        sites = {name: [Part.from_dict(part) for part in parts] for name, parts in values["sites"].items()}
        return cls.of(sites, Training(rates=rates, **training))

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical form: equal exactly when the same thing would be trained."""
        return digest(self.to_dict())
