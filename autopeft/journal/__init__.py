"""The append-only record of a search, from which everything else is rebuilt.

`Journal` writes it, `read_journal` reads it while it is being written, `SearchLog` folds it into what reports, the
controller and tracking ask for. ``docs/journal.md`` describes the file.
"""

from __future__ import annotations

from autopeft.journal.describe import Description, describe
from autopeft.journal.file import Journal, check_folder, in_use, read_journal
from autopeft.journal.front import furthest, pareto
from autopeft.journal.log import ConfigurationLog, DecisionLog, RungLog, SearchLog, TrialLog
from autopeft.journal.record import FIELDS, SCHEMA, Record

__all__ = [
    "FIELDS",
    "SCHEMA",
    "ConfigurationLog",
    "DecisionLog",
    "Description",
    "Journal",
    "Record",
    "RungLog",
    "SearchLog",
    "TrialLog",
    "check_folder",
    "describe",
    "furthest",
    "in_use",
    "pareto",
    "read_journal",
]
