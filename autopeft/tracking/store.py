"""The door to MLflow: address, settings of the library, first use of a fresh database, and which errors pass."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopeft.spec.stored import absolute_store

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The library's own seven retries take minutes, in which nothing can be cancelled; ours can.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Environment of the MLflow library, where the user has not set it otherwise."""

REFUSED = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"})
"""Errors that sending the same again cannot cure."""


SPOILT = ("duplicate column name", "Can't locate revision", "file is not a database")
"""What sqlite says of a database that another program left half made, or that is none."""


def tracking_uri(uri: str | None, folder: str | os.PathLike[str]) -> str | None:
    """The address of the tracking store, spelled out.

    Args:
        uri: What the user gave: None for ``mlflow.db`` beside the run folder, ``"none"`` for no tracking, a path of a
            ``.db`` file, or an MLflow tracking URI.
        folder: The run folder.

    Returns:
        An MLflow tracking URI, sqlite paths made absolute; None for no tracking.
    """
    if uri == "none":
        return None
    if uri is None:
        return f"sqlite:///{Path(folder).resolve().parent / 'mlflow.db'}"
    return absolute_store(uri)


def database(uri: str) -> Path | None:
    """The file of a sqlite store; None for other stores."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def connect(uri: str) -> Any:
    """A client of the store; a fresh database gets its tables first.

    Args:
        uri: An address from `tracking_uri`.

    Returns:
        An ``mlflow.MlflowClient``.

    Raises:
        mlflow.exceptions.MlflowException: The store cannot be reached; see `passes`.
        OSError: The database's folder cannot be written.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # They would write over the live table; what goes wrong comes back as an exception anyway.
    for noisy in ("alembic", "mlflow.store.db.utils", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    path = database(uri)
    if path is None:
        return MlflowClient(tracking_uri=uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes that open a fresh sqlite file together spoil it for each other ("table experiments already exists").
    with _first_use(path):
        if not path.exists():
            _make(path)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def failures() -> tuple[type[Exception], ...]:
    """What the client raises when the store does not answer or does not agree."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


def passes(error: Exception) -> bool:
    """Whether an error of the client may pass with time: connection refused, locked, overloaded, not permitted yet."""
    return getattr(error, "error_code", None) not in REFUSED


def spoilt(error: Exception) -> bool:
    """Whether the database itself is at fault, so that asking again is in vain."""
    return any(text in str(error) for text in SPOILT)


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The id of an experiment, made when missing, revived when it was deleted.

    Args:
        client: The client.
        uri: Its address: beside a sqlite file, artifacts go to the folder ``mlartifacts``.
        name: The experiment's name.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = database(uri)
        place = None if path is None else (path.parent / "mlartifacts").as_uri()
        # Without the kind, the pages guess it from the runs and open on those for language-model traces.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=place, tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _make(path: Path) -> None:
    """Make a database beside its place and move it there whole: one that is left half made can never be opened."""
    from mlflow import MlflowClient

    fresh = path.with_name(f".{path.name}.new")
    for leftover in path.parent.glob(f"{fresh.name}*"):
        leftover.unlink()
    MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)
    os.replace(fresh, path)


@contextmanager
def _first_use(path: Path) -> Iterator[None]:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    lock = os.open(Path(tempfile.gettempdir()) / f"autopeft-mlflow-{os.getuid()}-{name}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
