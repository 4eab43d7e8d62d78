"""What `import autopeft` gives, and what it leaves alone."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from fresh import run_script

import autopeft
from autopeft import errors

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "ray",
    "mlflow",
    "optuna",
    "datasets",
    "pandas",
    "sklearn",
    "scipy",
    "pyarrow",
)


def loaded_after(code: str) -> set[str]:
    """Names of the modules in a fresh interpreter after some code."""
    script = f"{code}\nimport sys; print('\\n' + ' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import autopeft",
        "import autopeft; autopeft.Task, autopeft.Budget, autopeft.SearchSpec, autopeft.InputError",
        "import autopeft.cli.parser; autopeft.cli.parser.build_parser().format_help()",
        "from autopeft.cli import main; main(['--version'])",
        "from autopeft.cli import main; main(['plan', '--max-time', 'never'])",
        "from autopeft.cli import main; main(['ls', 'methods'])",
        "from autopeft.cli import main; main(['ls', 'spaces'])",
        "import autopeft.methods, autopeft.spec.parse, autopeft.space, autopeft.catalogue, autopeft.journal",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


def test_the_check_sees_heavy_modules() -> None:
    assert "numpy" in loaded_after("import numpy")


def test_every_public_name_resolves_to_what_its_module_defines() -> None:
    for name in autopeft.__all__:
        if name == "__version__":
            continue
        value = getattr(autopeft, name)
        if name == "search":
            continue
        home = importlib.import_module(autopeft._HOME[name])
        assert value is getattr(home, name), name
    assert set(autopeft._HOME) == set(autopeft.__all__) - {"__version__", "search"}
    assert set(autopeft.__all__) <= set(dir(autopeft))


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from autopeft import *", names)
    assert set(autopeft.__all__) <= set(names)


def test_every_error_is_public_except_the_one_that_never_leaves_a_worker() -> None:
    assert set(errors.__all__) - {"TrialFailure"} <= set(autopeft.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        autopeft.serach  # noqa: B018


@pytest.mark.parametrize("first", ["import autopeft", "import autopeft.search", "from autopeft.search import run"])
def test_search_is_the_verb_whatever_was_imported_first(first: str) -> None:
    run_script(
        f"{first}\nimport autopeft, autopeft.search as home\n"
        "assert callable(autopeft.search) and callable(autopeft.search.run) and home is autopeft.search\n"
        "home.search = lambda *args, **options: (args, options)\n"
        "assert autopeft.search(1, space='lora') == ((1,), {'space': 'lora'})"
    )


def test_modules_name_what_they_export() -> None:
    import pkgutil

    missing = []
    for found in pkgutil.walk_packages(autopeft.__path__, "autopeft."):
        if found.name.endswith("__main__") or found.name.startswith("autopeft.testing"):
            continue
        module = importlib.import_module(found.name)
        missing += [f"{found.name}.{name}" for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
    assert missing == []
