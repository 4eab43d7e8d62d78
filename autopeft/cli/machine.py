"""``autopeft doctor`` and ``autopeft ui``: what concerns this machine rather than one search."""

from __future__ import annotations

import argparse
import json
import signal
import socket
from pathlib import Path
from typing import IO

from autopeft.cli.output import Boundary, write_json
from autopeft.errors import InputError

_STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Print what works here; exit 1 when something that is needed does not."""
    from autopeft import doctor as diagnosis

    if args.gpu_check:
        return diagnosis.gpu_check()
    checks = diagnosis.checks(start_ray=not args.quick)
    failed = any(check.state == "fail" for check in checks)
    if args.json:
        entries = [
            {"name": check.name, "state": check.state, "found": check.found, "next_step": check.next_step}
            for check in checks
        ]
        write_json({"status": "broken" if failed else "ok", "checks": entries}, stdout)
        return int(failed)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("check", style="bold", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        told = check.found if check.state == "ok" or not check.next_step else f"{check.found}. {check.next_step}"
        table.add_row(check.name, Text(check.state, style=_STYLE[check.state]), told)
    Console(file=stdout).print(table)
    return int(failed)


def ui(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Serve the MLflow pages of a tracking store until interrupted."""
    uri = args.tracking_uri or _stored_uri(args.folder)
    if not port_free(args.port):
        raise InputError.one("--port", args.port, "must be a free port between 1 and 65535", "Give another --port.")
    from autopeft.tracking import page_address, serve_ui

    server = f"http://127.0.0.1:{args.port}"
    page = server if args.folder is None else page_address(args.folder, server)
    print(f"{page}   (stop with Ctrl-C)", file=stdout, flush=True)
    # The server lives in a process group of its own: a supervisor's TERM must end it as Ctrl-C does, not orphan it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return int(serve_ui(uri, args.port) != 0)


def port_free(port: int) -> bool:
    """Whether a port of this machine can be listened on."""
    if not 0 < port < 65536:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _stored_uri(folder: str | None) -> str:
    if folder is None:
        store = Path("runs") / "mlflow.db"
        asked, value = "--tracking-uri", None
    else:
        tracked = Path(folder) / "tracking.json"
        if tracked.is_file():
            return str(json.loads(tracked.read_text(encoding="utf-8"))["uri"])
        store = Path(folder).resolve().parent / "mlflow.db"
        asked, value = "RUN_DIR", folder
    if not store.is_file():
        raise InputError.one(
            asked, value, f"there is no tracking store at {store}", "Give --tracking-uri, or run a search."
        )
    return f"sqlite:///{store.resolve()}"
