"""What a user asks for: task, budget, search; parsed with all errors at once."""

from __future__ import annotations

from autopeft.spec.budget import TARGETS, Budget
from autopeft.spec.search import EVIDENCE, EXECUTORS, SearchSpec
from autopeft.spec.task import HEADS, KINDS, METRICS, Task

__all__ = ["EVIDENCE", "EXECUTORS", "HEADS", "KINDS", "METRICS", "TARGETS", "Budget", "SearchSpec", "Task"]
