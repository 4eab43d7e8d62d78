"""The documents do not lie: links lead somewhere, commands parse, the Python of the README is valid."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from compose_models import build, train_steps, uniform

import autopeft
from autopeft.cli.parser import parse
from autopeft.compose.base import attach, load_base
from autopeft.compose.store import save_adapter
from autopeft.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_page_of_methods_is_the_table() -> None:
    from autopeft.cli.methods_page import markdown

    assert (ROOT / "docs" / "methods.md").read_text() == markdown(), "run: make docs"


def test_the_python_about_adapter_folders_gives_what_was_trained(minilm: Path, tmp_path: Path) -> None:
    carrier = attach(load_base(str(minilm), kind="sequence_classification"), head="mean", labels=3)
    adapted = build(carrier, uniform(carrier.modules, "lora", "serial", "prefix"))
    train_steps(adapted)
    save_adapter(adapted, tmp_path / "winner", meta={})
    found: dict[str, Any] = {"MODEL": str(minilm), "FOLDER": str(tmp_path / "winner")}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adapter.md").read_text(), re.DOTALL):
        exec(block, found)
    with torch.no_grad():
        expected = adapted(found["tokens"]["input_ids"], found["tokens"]["attention_mask"])
    torch.testing.assert_close(found["logits"], expected, atol=1e-4, rtol=1e-4)


def test_the_page_of_measured_methods_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("methods").page()
    assert (ROOT / "docs" / "methods-measured.md").read_text() == page, "run: make docs"
    searchable = {name for name, row in METHODS.items() if row.unsearchable is None}
    # CPT needs a language model.
    assert {name for name in searchable if f"| {name} |" not in page} == {"cpt"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("autopeft ") and "..." not in line]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    for line in commands(page):
        parse(shlex.split(line)[1:])


def test_the_python_of_the_readme_uses_what_exists() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    tree = ast.parse(code)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "autopeft"
    }
    assert used
    assert all(hasattr(autopeft, name) for name in used)
    # Six lines besides the import, as the text says nothing more is needed.
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("import")]) <= 6


def test_make_verbs_of_the_readme_exist() -> None:
    verbs = re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(verbs) <= targets


def test_the_readme_says_of_predicted_memory_what_is_on_record() -> None:
    lines = (ROOT / "benchmarks" / "results" / "memory_prediction.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    live = [abs(run["predicted"] / run["measured"] - 1) for run in runs]
    events = [run["predicted"] / run["allocated"] - 1 for run in runs]
    assert len(runs) >= 200
    assert max(live) < 0.01
    told = " ".join((ROOT / "README.md").read_text().split())
    assert f"{len(runs)} random configurations on MiniLM and SmolLM2-135M" in told
    assert f"at most {max(live):.2%} from the live bytes".replace("%", " %") in told
    assert f"{sum(abs(error) <= 0.01 for error in events)} were within 1 %" in told
    assert min(events) > -0.01
