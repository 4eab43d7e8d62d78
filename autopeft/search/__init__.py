"""The public verbs: search, plan, load."""

from __future__ import annotations

from autopeft.search.events import Event, Snapshot
from autopeft.search.predict import Predictor, load
from autopeft.search.preview import Plan, make_plan, plan
from autopeft.search.result import SearchResult
from autopeft.search.run import run, search

__all__ = ["Event", "Plan", "Predictor", "SearchResult", "Snapshot", "load", "make_plan", "plan", "run", "search"]
