"""Searches on real tasks, beside a linear probe, tuned LoRA and full fine-tuning: the table of the README.

    python benchmarks/tasks.py --data-root DIR [--only sst2 rte] [--table]

DIR holds one folder a task (`sst2`, `rte`, `clinc150`, `stsb`, `e2e_nlg`) with train, validation and test files.
Searches that are done are not repeated; ``--table`` only prints what is there. Full fine-tuning is in
`full_finetuning.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs" / "bench"
RESULTS = HERE / "results"
LANGUAGE = ("--prompt-column", "mr", "--response-column", "ref", "--max-time", "20m")
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sst2": ("minilm", ("--max-time", "8m")),
    "rte": ("minilm", ("--max-time", "8m")),
    "clinc150": ("minilm", ("--max-time", "8m")),
    "stsb": ("minilm", ("--max-time", "8m")),
    "e2e_nlg": ("smollm2", LANGUAGE),
}
KEPT = ("status", "verdict", "winner", "baseline", "challenger", "reference", "trials", "wall_seconds", "task", "head")


def model_folder(name: str) -> str:
    """Where a model of the benchmarks lies."""
    command = [sys.executable, "-m", "autopeft.testing.real", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def command(name: str, data: Path) -> list[str]:
    """The search of a task, as a user would type it."""
    model, options = TASKS[name]
    program = str(Path(sys.executable).parent / "autopeft")
    fixed = ("--max-params", "1%", "--workers", "2", "--out", str(RUNS / name), "--overwrite")
    return [program, "search", "--model", model_folder(model), "--data", str(data / name), *options, *fixed]


def search(name: str, data: Path) -> None:
    """Run one search and keep the part of its result that the table needs."""
    subprocess.run(command(name, data), check=True)
    found = json.loads((RUNS / name / "result.json").read_text())
    kept = {key: found[key] for key in KEPT}
    kept["budget"] = found["budget"]
    kept["environment"] = found["environment"]
    kept["task"].pop("notes")
    kept["task"].pop("label_names")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"task_{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def full(name: str) -> str:
    """Full fine-tuning at its best rate: mean test score and seeds."""
    file = RESULTS / "full_finetuning.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    rows = [row for row in rows if row["name"] == name]
    if not rows:
        return "not run"
    best = max(rows, key=lambda row: row["validation"])["rate"]
    runs = [row["test"] for row in rows if row["rate"] == best]
    return f"{sum(runs) / len(runs):.4f} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"


def block(found: dict[str, Any], role: str) -> str:
    """Test score and adapter parameters of an arm."""
    arm = found[role]
    if arm is None:
        return "none fits"
    metric = found["task"]["metric"]
    tested = arm["test"][metric] if arm["test"] else float("nan")
    return f"{tested:.4f} ({'+'.join(arm['methods'])}, {arm['adapter_params']:,})"


def table() -> str:
    """All that was measured, as markdown."""
    head = (
        "| task | metric | probe or bare base (validation) | tuned LoRA (test) | best of the space (test) "
        "| full fine-tuning (test) | verdict on validation, 95 % interval | returned |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    rows = []
    for name in TASKS:
        file = RESULTS / f"task_{name}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text())
        verdict = found["verdict"]
        shown = f"{verdict['name']} {verdict['difference']:+.4f} [{verdict['low']:+.4f}, {verdict['high']:+.4f}]"
        cells = (
            name,
            found["task"]["metric"],
            f"{found['reference']['validation']:.4f}",
            block(found, "baseline"),
            block(found, "challenger"),
            full(name),
            f"{shown}, {verdict['seeds']} seeds",
            verdict["takes"],
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([head, *rows])


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--again", action="store_true", help="repeat searches that are done")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if arguments.data_root is None and not arguments.table:
        print("no --data-root: the tasks are not run again")
    elif not arguments.table:
        for name in arguments.only:
            if arguments.again or not (RESULTS / f"task_{name}.json").exists():
                search(name, arguments.data_root.resolve())
    print(table())


if __name__ == "__main__":
    main()
