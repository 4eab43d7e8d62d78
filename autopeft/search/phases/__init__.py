"""The phases of a search. Each answers what a free slot does, and takes the outcomes of the jobs that it made."""

from __future__ import annotations

from autopeft.search.phases.confirm import Confirm
from autopeft.search.phases.eval_sets import EvalSets
from autopeft.search.phases.explore import Explore
from autopeft.search.phases.probe import ProbePhase
from autopeft.search.phases.simplify import Simplify
from autopeft.search.phases.test import TestPhase
from autopeft.search.phases.train import Trainer

__all__ = ["Confirm", "EvalSets", "Explore", "ProbePhase", "Simplify", "TestPhase", "Trainer"]
