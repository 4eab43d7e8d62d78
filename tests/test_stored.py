"""Adapters that releases of autopeft wrote give what they gave then. See `stored_adapters`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stored_adapters import KINDS, STORED, carrier_of

import autopeft
from autopeft.compose.store import describe, load_adapter
from autopeft.methods import METHODS

RELEASES = sorted(STORED.glob("*.zip"))


def names(release: Path) -> list[str]:
    with zipfile.ZipFile(release) as archive:
        return sorted({name.split("/")[1] for name in archive.namelist() if name.startswith("adapters/")})


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for release in RELEASES:
        found[release.stem] = tmp_path_factory.mktemp("stored")
        with zipfile.ZipFile(release) as archive:
            archive.extractall(found[release.stem])
    return found


@pytest.mark.filterwarnings("ignore:Specified to not save")
@pytest.mark.parametrize(("release", "name"), [(path.stem, name) for path in RELEASES for name in names(path)])
def test_it_gives_what_it_gave_then(unpacked: dict[str, Path], release: str, name: str) -> None:
    root = unpacked[release]
    about = describe(root / "adapters" / name)
    base = next((base for base in KINDS if name.startswith(base)), "llama" if about["kind"] == "causal_lm" else "bert")
    adapted = load_adapter(carrier_of(root / "bases", base, about["head"]), root / "adapters" / name)
    expected = load_file(root / "expected" / f"{name}.safetensors")
    with torch.no_grad():
        logits = adapted(expected["ids"], expected["mask"])
    # Other machines and versions of torch sum in another order; every method's values matter by ten times as much.
    assert float((logits - expected["logits"]).abs().max()) < 1e-4 * float(expected["logits"].abs().max())


def test_this_version_stores_every_method(unpacked: dict[str, Path]) -> None:
    """Until it is released its zip may be made anew: `python tests/stored_adapters.py`."""
    root = unpacked[autopeft.__version__]
    held = set()
    for folder in (root / "adapters").iterdir():
        sites = describe(folder)["configuration"]["sites"]
        held |= {part["method"] for parts in sites.values() for part in parts}
    assert held == {name for name, method in METHODS.items() if method.unsearchable is None}
