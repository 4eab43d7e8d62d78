"""The wheel holds what the program needs, and works where there is nothing but the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("search_spaces", "strategies")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked into a folder of its own, as an installer does with a pure one."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def in_empty_folder(installed: Path, folder: Path, *arguments: str) -> str:
    # -S -P: neither this environment's packages nor the working folder, so the checkout cannot be seen. The libraries
    # come after the wheel, without the .pth file by which an editable install would bring the checkout back.
    code = (
        "import sys; sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]; import autopeft, autopeft.cli; "
        "assert autopeft.__file__.startswith(sys.path[0]), autopeft.__file__; sys.exit(autopeft.cli.main())"
    )
    libraries = sysconfig.get_path("purelib")
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code, str(installed), libraries, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_preset_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        presets = sorted((ROOT / folder).glob("*.yaml"))
        assert presets
        for preset in presets:
            assert f"autopeft/_data/{folder}/{preset.name}" in names
    assert "autopeft/py.typed" in names


def test_nothing_else_is_at_the_top_of_the_wheel(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"autopeft"}


def test_the_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    import autopeft

    assert in_empty_folder(installed, tmp_path, "--version").strip() == autopeft.__version__
    listed = in_empty_folder(installed, tmp_path, "ls", "spaces")
    for preset in (ROOT / "search_spaces").glob("*.yaml"):
        assert preset.stem in listed
    text = (ROOT / "search_spaces" / "hybrid.yaml").read_text(encoding="utf-8")
    assert in_empty_folder(installed, tmp_path, "cat", "spaces", "hybrid") == text
    assert "tpe-asha" in in_empty_folder(installed, tmp_path, "ls", "strategies")
    in_empty_folder(installed, tmp_path, "validate", "spaces", "hybrid", "lora")
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" in project["dynamic"]
    assert "version" not in project


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [Requirement(text) for text in (*project["project"]["dependencies"], *project["dependency-groups"]["dev"])]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    for requirement in wanted:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} excludes the pinned {pin}"


def test_the_peft_that_was_tested_is_the_peft_that_is_asked_for() -> None:
    from autopeft.compose.host import PEFT_VERSION

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (asked,) = (line for line in project["dependencies"] if line.startswith("peft"))
    major, minor = PEFT_VERSION.rstrip(".").split(".")
    assert asked.startswith(f"peft>={PEFT_VERSION}")
    assert asked.endswith(f",<{major}.{int(minor) + 1}")
