"""What a search found, for people: in the terminal and as one HTML file, from the journal alone.

Both work while the search runs and after it has crashed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.journal import SearchLog, in_use, read_journal
from autopeft.report.facts import Facts, gather

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Facts", "gather", "report", "summary"]


def report(folder: str | os.PathLike[str]) -> str:
    """Write ``report.html`` into a run folder: one file that needs nothing else and no network.

    The same drawings come as files of their own in ``charts``.

    Args:
        folder: The run folder, of a search that has ended, runs, or has died.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: The folder holds no run.
        DamagedFile: Its journal is damaged.
    """
    from autopeft.report.gallery import write_charts
    from autopeft.report.page import page

    facts, path = _facts(folder), Path(folder) / "report.html"
    half = path.with_name("report.html.part")
    half.write_text(page(facts), encoding="utf-8")
    half.replace(path)
    write_charts(facts, Path(folder) / "charts")
    return str(path)


def summary(folder: str | os.PathLike[str]) -> RenderableType:
    """The answer for a terminal; ``rich.print(summary(folder))`` shows it.

    Args:
        folder: The run folder, of a search that has ended, runs, or has died.

    Raises:
        RunFolderError: The folder holds no run.
        DamagedFile: Its journal is damaged.
    """
    from autopeft.report.terminal import render

    return render(_facts(folder), str(folder))


def _facts(folder: str | os.PathLike[str]) -> Facts:
    return gather(SearchLog.fold(read_journal(folder)), running=in_use(folder))
