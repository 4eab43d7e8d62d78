"""Trains, probes and evaluates on one worker; knows no ray, mlflow or optuna."""

from __future__ import annotations

from autopeft.trial.setup import Progress, WorkSetup

__all__ = ["Progress", "WorkSetup"]
