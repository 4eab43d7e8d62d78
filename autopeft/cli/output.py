"""What the command line writes, and with which code it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from autopeft.cli.flags import FLAGS
from autopeft.errors import AutopeftError, InputError, Interrupted, NothingFeasible
from autopeft.spec.amounts import format_at_least

_STATUS = {2: "invalid", 3: "infeasible", 4: "cancelled"}


_LIBRARIES = ("transformers", "peft", "torch", "ray", "mlflow", "optuna", "datasets", "sklearn", "huggingface_hub")


def quiet_libraries() -> None:
    """Leave out warnings that libraries address to those who program with them, unless ``-W`` asks for warnings."""
    if not sys.warnoptions:
        for library in _LIBRARIES:
            warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        # Imported by peft wherever it is installed; it misses kernels that nothing asked for.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def write_json(document: Mapping[str, Any] | list[Any], stream: IO[str] | None = None) -> None:
    """Write one JSON document and a line end to stdout (or `stream`), and flush."""
    stream = stream if stream is not None else sys.stdout
    stream.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    stream.flush()


@contextlib.contextmanager
def stdout_reserved(reserve: bool) -> Iterator[IO[str]]:
    """Keep stdout for one document: all else that is written there meanwhile goes to stderr.

    Libraries and child processes write to file descriptor 1 directly, so that one is turned round as well.

    Args:
        reserve: False changes nothing.

    Yields:
        The real stdout.
    """
    if not reserve:
        yield sys.stdout
        return
    real = sys.stdout
    try:
        descriptor = real.fileno()
    except (OSError, AttributeError):
        # A captured stdout (tests, notebooks) has no descriptor: only Python's own writes can be turned round.
        with contextlib.redirect_stdout(sys.stderr):
            yield real
        return
    real.flush()
    saved = os.dup(descriptor)
    os.dup2(sys.stderr.fileno(), descriptor)
    with os.fdopen(saved, "w", encoding="utf-8") as kept, contextlib.redirect_stdout(sys.stderr):
        try:
            yield kept
        finally:
            kept.flush()
            os.dup2(saved, descriptor)


class Boundary:
    """The outermost frame: turns whatever leaves a verb into an exit code and one clear message.

    Args:
        as_json: Whether errors are a JSON document on stdout.
        stdout: Where that document goes.

    Attributes:
        code: Exit code: 0, 2 bad input, 3 nothing feasible, 4 interrupted, 1 a fault of ours.
        folder: The run folder once it is known: the log of a fault goes there.
    """

    def __init__(self, *, as_json: bool, stdout: IO[str]) -> None:
        self.code = 0
        self.folder: Path | None = None
        self._as_json = as_json
        self._stdout = stdout

    def __enter__(self) -> Boundary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        if isinstance(error, BrokenPipeError):
            # The reader has seen enough (`| head`); what is left in the buffer must not raise again at exit.
            with contextlib.suppress(OSError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout.fileno())
            return True
        if isinstance(error, KeyboardInterrupt):
            error = Interrupted("stopped from the keyboard")
        if isinstance(error, AutopeftError):
            self.code = error.exit_code
            if error.exit_code == 1:
                self._report(self._document(error), f"autopeft: a fault of ours: {error}")
            else:
                self._report(self._document(error), _sentence(error))
            return True
        if not isinstance(error, Exception):
            return False
        self.code = 1
        self._fault(error)
        return True

    def _report(self, document: Mapping[str, Any], text: str) -> None:
        if self._as_json:
            write_json(document, self._stdout)
        else:
            print(text, file=sys.stderr)

    def _document(self, error: AutopeftError) -> dict[str, Any]:
        document: dict[str, Any] = {"status": _STATUS.get(error.exit_code, "fault")}
        if isinstance(error, InputError):
            document["errors"] = [
                {"field": p.field, "value": _plain(p.value), "rule": p.rule, "next_step": p.next_step}
                for p in error.problems
            ]
            return document
        if isinstance(error, NothingFeasible):
            document |= {"binds": error.binds, "smallest": error.smallest, "would_do": _would_do(error)}
        return document | {"detail": str(error)}

    def _fault(self, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            told = (
                f"autopeft: the disk is full ({error.filename or 'no file named'}). Free some space and use --resume."
            )
        else:
            told = f"autopeft: {type(error).__name__}: {error}\nThis is a fault of ours."
        log = self._write_log(text)
        if log is None:
            print(text, file=sys.stderr)
        told += " The traceback is above." if log is None else f" The traceback is in {log}."
        document = {
            "status": "fault",
            "detail": f"{type(error).__name__}: {error}",
            "log": None if log is None else str(log),
        }
        self._report(document, told)

    def _write_log(self, text: str) -> Path | None:
        if self.folder is None or not self.folder.is_dir():
            return None
        log = self.folder / time.strftime("fault-%Y%m%d-%H%M%S.log")
        try:
            log.write_text(text, encoding="utf-8")
        except OSError:
            return None
        return log


def _sentence(error: AutopeftError) -> str:
    if isinstance(error, InputError):
        count = len(error.problems)
        head = "autopeft: this cannot be used:" if count == 1 else f"autopeft: {count} things cannot be used:"
        return "\n".join([head, *(f"  {problem}" for problem in error.problems)])
    if isinstance(error, NothingFeasible):
        told = [f"autopeft: nothing feasible: {error}", f"  What binds is {_limit_name(error.binds)}."]
        told += [f"  The smallest that would do: {name} {amount}" for name, amount in _would_do(error).items()]
        return "\n".join(told)
    return f"autopeft: {error}"


def _limit_name(field: str) -> str:
    """A limit by its flag, or by its field where it has none."""
    return next((flag.name for flag in FLAGS if flag.field == f"budget.{field}"), field)


def _would_do(error: NothingFeasible) -> dict[str, str]:
    """The smallest limits that would do, as their flags take them; the one that binds first."""
    ordered = sorted(error.smallest.items(), key=lambda item: item[0] != error.binds)
    return {_limit_name(field): format_at_least(field, value) for field, value in ordered}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool | list | dict) else str(value)
