"""The search in MLflow: written by one thread, behind the search's back, from the journal's records.

`Tracker` follows a running search, `replay` sends what is missing later, `serve_ui` opens the pages. MLflow being slow
or away never holds a search up: the journal has everything, and a cursor says what MLflow has.
"""

from __future__ import annotations

from autopeft.tracking.server import mlflow_ui_command, serve_ui, start_ui
from autopeft.tracking.store import tracking_uri
from autopeft.tracking.tracker import Tracker, page_address, replay

__all__ = ["Tracker", "mlflow_ui_command", "page_address", "replay", "serve_ui", "start_ui", "tracking_uri"]
