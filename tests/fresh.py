"""Python source run in processes of its own, which know nothing of what the tests have imported or registered.

Importing torch, transformers and peft takes seconds. Two servers import them once, and nothing of autopeft; every
script gets a fork of one of them.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300
"""How long a script may take."""

_SERVER = """
import json, os, sys, traceback
import torch, transformers, peft, safetensors.torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)
        continue
    for number, file in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(asked["folder"], file), os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["-c", *asked["arguments"]]
    status = 1
    try:
        exec(compile(asked["script"], "<script>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
"""
# An editable install leaves a folder with presets there, which holds no code.
_WITHOUT_AUTOPEFT = f"""
import sys; sys.path.append({sysconfig.get_path("purelib")!r})
import importlib.util; assert getattr(importlib.util.find_spec("autopeft"), "origin", None) is None
"""


class _Server:
    def __init__(self, *flags: str, first: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-W", "ignore", "-c", first + _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        atexit.register(self.end)

    def end(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def run(self, script: str, arguments: tuple[object, ...]) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            asked = {"script": script, "arguments": [str(a) for a in arguments], "folder": folder}
            self.process.stdin.write(json.dumps({**asked, "environment": dict(os.environ)}) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
            assert ready, f"nothing came back in {SECONDS} s"
            status = self.process.stdout.readline().strip()
            out, err = ((Path(folder) / name).read_text() if status else "" for name in ("stdout", "stderr"))
        assert status == "0", err or "the server of fresh processes has died"
        return out


@cache
def _server(autopeft: bool) -> _Server:
    return _Server() if autopeft else _Server("-I", "-S", first=_WITHOUT_AUTOPEFT)


def run_script(script: str, *arguments: object) -> str:
    """Run Python source in a fresh process and return what it prints."""
    return _server(True).run(script, arguments)


def run_without_autopeft(script: str, *arguments: object) -> str:
    """The same where the libraries are installed and autopeft is not: no checkout on the path, no editable install."""
    return _server(False).run(script, arguments)
