"""The layer table of docs/design.md, enforced over the syntax tree.

A module imports only from its own unit, from lower rows, and from what stands before it in its own row. Imports inside
functions count as well; those under ``if TYPE_CHECKING`` do not exist when the program runs and are left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "autopeft"

ROWS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("methods", "spec"),
    ("space", "catalogue", "journal"),
    ("strategy", "evidence", "data", "inspect"),
    ("compose", "hybrid"),
    ("cost",),
    ("trial",),
    ("executors", "tracking", "report"),
    ("search",),
    ("export", "doctor"),
    ("cli", "service", "client"),
    ("testing",),
)
"""From the bottom to the top."""

ORDER = {unit: (row, place) for row, units in enumerate(ROWS) for place, unit in enumerate(units)}

OWNERS: dict[str, tuple[str, ...]] = {
    "ray": ("executors", "doctor", "testing"),
    "mlflow": ("tracking", "export", "testing"),
    "optuna": ("strategy", "testing"),
    "argparse": ("cli", "testing"),
}
"""Library -> the units that may import it."""

LIGHT = {"errors", "methods", "spec", "space", "catalogue", "journal", "strategy"}
"""Units that must be usable without loading torch."""

ENTRY_POINTS = {"__init__", "__main__"}


def unit_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = ["autopeft", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, *, package: bool) -> Iterator[tuple[str, int]]:
    """Every dotted name that a tree imports when it runs, with its line."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            stack.extend(node.orelse)
            continue
        stack.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            if node.level:
                base = base[: len(base) - node.level + (1 if package else 0)]
                name = ".".join([*base, *([node.module] if node.module else [])])
            else:
                name = node.module or ""
            # `from autopeft import catalogue` imports a unit, not a name.
            yield from ((f"{name}.{alias.name}", node.lineno) for alias in node.names)


def violations(path: Path, text: str) -> list[str]:
    unit, module = unit_of(path), module_of(path)
    found = []
    for name, line in imported(ast.parse(text), module, package=path.name == "__init__.py"):
        where = f"{path.relative_to(ROOT.parent)}:{line}"
        top, *rest = name.split(".")
        for library, owners in OWNERS.items():
            if top == library and unit not in owners:
                found.append(f"{where} imports {library}, which only {', '.join(owners)} may")
        internal = top == "peft" and bool(rest) and rest[0] in ("tuners", "utils", "mapping", "peft_model")
        if internal and unit != "testing" and path.parent != ROOT / "compose" / "host":
            found.append(f"{where} imports {name}: only compose/host touches peft's internals")
        if top in ("torch", "peft", "transformers") and unit in LIGHT:
            found.append(f"{where} imports {top} in a unit that must stay light")
        if top != "autopeft" or not rest:
            continue
        other = rest[0]
        if other not in ORDER or other == unit:
            continue
        if unit in ENTRY_POINTS:
            continue
        if ORDER[other] > ORDER[unit]:
            found.append(f"{where}: {unit} imports {other}, which lies above it")
    return found


SOURCES = sorted(path for path in ROOT.rglob("*.py") if "_data" not in path.parts)


def test_every_unit_has_its_place() -> None:
    units = {unit_of(path) for path in SOURCES} - ENTRY_POINTS
    assert units <= set(ORDER), f"not in the table: {sorted(units - set(ORDER))}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_downwards(path: Path) -> None:
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("space/bound.py", "from autopeft.strategy.base import Strategy"),
        ("methods/lora.py", "from autopeft.spec import Task"),
        ("trial/run.py", "def go():\n    import ray"),
        ("search/__init__.py", "from autopeft import cli"),
        ("search/__init__.py", "from mlflow import start_run"),
        ("space/bound.py", "import torch.nn"),
        ("compose/adapt.py", "from peft.tuners.lora import LoraLayer"),
        ("cli/search.py", "from autopeft.testing import strategies"),
        ("compose/adapt.py", "from ..cost import live"),
        ("executors/ray.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from autopeft.search import run"),
    ],
)
def test_the_test_finds_what_is_forbidden(file: str, text: str) -> None:
    assert len(violations(ROOT / file, text)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("space/bound.py", "from autopeft.methods import METHODS\nfrom autopeft.space.modules import Site"),
        ("compose/host/tuner.py", "from peft.tuners.tuners_utils import BaseTuner"),
        ("search/run.py", "if TYPE_CHECKING:\n    from autopeft.report import summary"),
        ("hybrid.py", "from autopeft.compose.host import register"),
        ("testing/strategies.py", "from autopeft.search import run\nimport ray"),
        ("compose/layers/bias.py", "from ..host import Host"),
    ],
)
def test_the_test_lets_pass_what_is_allowed(file: str, text: str) -> None:
    assert violations(ROOT / file, text) == []


def test_no_cycles_between_modules() -> None:
    """Imports at the top of modules form no cycle (inside a function they are the usual way to break one)."""
    modules = {module_of(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        edges[module] = set()
        for name, _ in imported(top, module, package=path.name == "__init__.py"):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                edges[module].add(target)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in modules:
        visit(module, ())
