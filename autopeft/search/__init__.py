"""The public verbs: search, plan, load."""

from __future__ import annotations

from autopeft.search.events import Event, Snapshot
from autopeft.search.predict import Predictor, load
from autopeft.search.preview import Plan, plan
from autopeft.search.result import SearchResult
from autopeft.search.run import run, search

__all__ = ["Event", "Plan", "Predictor", "SearchResult", "Snapshot", "load", "plan", "run", "search"]
