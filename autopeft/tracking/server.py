"""MLflow's pages for a store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from autopeft.errors import InputError
from autopeft.tracking.store import SETTINGS, connect, database, tracking_uri


def mlflow_ui_command(uri: str, port: int = 5000) -> list[str]:
    """The command that serves the pages of a store on this machine alone.

    Args:
        uri: The store: a database.
        port: Port on 127.0.0.1.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    path = database(uri)
    if path is not None:
        command += ["--default-artifact-root", (path.parent / "mlartifacts").as_uri()]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def start_ui(uri: str, port: int = 5000) -> subprocess.Popen[bytes]:
    """Start MLflow's pages for a store; they answer some seconds later, at ``http://127.0.0.1:PORT``.

    Args:
        uri: A sqlite path or URI, or another database's URI.
        port: Port on 127.0.0.1.

    Returns:
        The server, at the head of a process group of its own; the caller ends that group.

    Raises:
        InputError: The store is a server already, or there is no such database.
    """
    address = tracking_uri(uri, ".")
    if address is None or address.startswith(("http://", "https://")):
        raise InputError.one("tracking_uri", uri, "must be a database", "Open that address in a browser")
    path = database(address)
    if path is not None:
        if not path.is_file():
            raise InputError.one("tracking_uri", uri, "there is no such database", "Run a search first")
        # The tables must be whole before the server's workers look at them.
        connect(address)
    return subprocess.Popen(mlflow_ui_command(address, port), env={**SETTINGS, **os.environ}, start_new_session=True)


def serve_ui(uri: str, port: int = 5000) -> int:
    """Serve MLflow's pages until interrupted.

    Args:
        uri: As for `start_ui`.
        port: Likewise.

    Returns:
        The server's exit status; 0 after an interruption.

    Raises:
        InputError: As for `start_ui`.
    """
    server = start_ui(uri, port)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
