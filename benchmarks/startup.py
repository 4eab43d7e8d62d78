"""How long a search takes to its first training step, and where the time goes.

    python benchmarks/startup.py --model MODEL --data FOLDER [--workers 2] [--repeat 2] [--json FILE]

Runs ``autopeft search`` itself and reads its journal: `used` counts from the start of the process. The first run has an
empty cache, later ones find what it left. Processor seconds are those of all processes of the search by then, so that
a loaded machine can be told from a slow start. The modules that take longest to import are told by ``-X importtime``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

WANTED = ("search_started", "probe heads", "probe speed", "plan", "trial_started", "rung")
PATIENCE = 600.0


def label(record: dict[str, Any]) -> str:
    return f"probe {record['data']['kind']}" if record["type"] == "probe" else str(record["type"])


def records(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = file.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def processor_seconds(process: psutil.Process) -> float:
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def start(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """One search, ended at its first rung: what was in its journal when, and the processor seconds by then."""
    with (folder.parent / "log").open("w") as log:
        child = subprocess.Popen([*command, "--out", str(folder)], stdout=log, stderr=log, env=environment)
    # A shell may have told its children to ignore it.
    process = psutil.Process(child.pid)
    seen: dict[str, dict[str, float]] = {}
    began, cpu = time.monotonic(), 0.0
    try:
        while "rung" not in seen and child.poll() is None and time.monotonic() - began < PATIENCE:
            cpu = max(cpu, processor_seconds(process))
            for record in records(folder / "journal.jsonl"):
                name = label(record)
                if name in WANTED and name not in seen:
                    seen[name] = {"seconds": record["used"], "processor_seconds": cpu}
            time.sleep(0.1)
        phases = records(folder / "journal.jsonl")[0]["data"].get("started", {}) if seen else {}
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
    if "trial_started" not in seen:
        raise SystemExit((folder.parent / "log").read_text() or "no trial was started")
    return {"phases": phases, "records": seen}


def slowest_imports(environment: dict[str, str], most: int = 12) -> list[tuple[str, float]]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import autopeft.search"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    found = []
    for line in done.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdigit():
            found.append((parts[2].strip(), int(parts[1]) / 1e6))
    return sorted(found, key=lambda pair: -pair[1])[:most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-time", default="8m")
    parser.add_argument("--repeat", type=int, default=2, help="runs; the first finds an empty cache")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "AUTOPEFT_CACHE": str(Path(place) / "cache")}
        command = [sys.executable, "-m", "autopeft", "search", "--model", arguments.model, "--data", arguments.data]
        command += ["--max-params", "1%", "--max-time", arguments.max_time, "--tracking-uri", "none"]
        command += ["--workers", str(arguments.workers)]
        for number in range(arguments.repeat):
            folder = Path(place) / str(number) / "run"
            folder.parent.mkdir()
            load = os.getloadavg()[0]
            runs.append(
                {"cache": "empty" if number == 0 else "filled", "load": load, **start(command, folder, environment)}
            )
        imports = slowest_imports(environment)
    for run in runs:
        print(f"\ncache {run['cache']}, load {run['load']:.1f}")
        print("| by then | seconds | processor seconds |\n|---|---|---|")
        for name, seconds in run["phases"].items():
            print(f"| {name} | {seconds:.2f} | |")
        for name, at in run["records"].items():
            print(f"| {name} | {at['seconds']:.2f} | {at['processor_seconds']:.1f} |")
    print("\n| import | seconds, with all that it imports |\n|---|---|")
    for name, seconds in imports:
        print(f"| {name} | {seconds:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": runs, "imports": imports}, indent=2) + "\n")


if __name__ == "__main__":
    main()
