"""What the measurements show: metrics, intervals, verdicts, and the reference of a linear probe."""

from __future__ import annotations

from autopeft.evidence.bootstrap import LEVEL, Interval, Verdict, compare, interval, paired_flips
from autopeft.evidence.calibration import ErrorRate, error_rate
from autopeft.evidence.metrics import Outputs, bounds, per_example, score
from autopeft.evidence.power import COUNTED, Power, detectable
from autopeft.evidence.probe import ProbeResult, linear_probe
from autopeft.evidence.rows import ClassScore, Flips, class_rows, class_scores, flips
from autopeft.evidence.selection import optimism

__all__ = [
    "COUNTED",
    "LEVEL",
    "ClassScore",
    "ErrorRate",
    "Flips",
    "Interval",
    "Outputs",
    "Power",
    "ProbeResult",
    "Verdict",
    "bounds",
    "class_rows",
    "class_scores",
    "compare",
    "detectable",
    "error_rate",
    "flips",
    "interval",
    "linear_probe",
    "optimism",
    "paired_flips",
    "per_example",
    "score",
]
