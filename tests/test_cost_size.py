"""Size of a saved adapter, predicted from above."""

from __future__ import annotations

from pathlib import Path

import pytest
from compose_models import carrier_of, save_tiny

from autopeft.compose.adapt import adapt
from autopeft.compose.base import attach, load_base
from autopeft.compose.store import save_adapter
from autopeft.cost.size import adapter_bytes
from autopeft.methods import METHODS
from autopeft.space.configuration import WHOLE, Configuration, Part, Training

WHOLE_ONLY = [name for name, row in METHODS.items() if row.whole and row.unsearchable is None]
HOSTED = {name: row for name, row in METHODS.items() if row.hosted}


@pytest.mark.parametrize("head", ["mean", "stock"])
def test_a_saved_folder_is_at_most_as_large_and_not_much_smaller(head: str, minilm: Path, tmp_path: Path) -> None:
    carrier = attach(load_base(str(minilm), kind="sequence_classification"), head=head, labels=150)
    modules = carrier.modules
    for method, row in HOSTED.items():
        sites = [site for site in modules.sites if row.fits(site)][:20]
        # OSF and PSOFT decompose every weight that they sit on; a few are enough.
        sites = sites[:4] if method in ("osf", "psoft", "boft") else sites
        parts = {}
        for site in sites:
            legal = row.sizes(site) if row.size else ()
            parts[site.name] = [Part.of(method, row.knobs(site, legal[len(legal) // 2] if legal else None))]
        configuration = Configuration.of(parts, Training(((method, 1e-3),), 1e-3, 16))
        adapted = adapt(carrier, configuration, modules, seed=0)
        folder = tmp_path / method
        save_adapter(adapted, folder, meta={"trial": "t0000", "seed": 0})
        written = sum(path.stat().st_size for path in folder.iterdir())
        predicted = adapter_bytes(configuration, modules, adapted.head_params)
        assert written <= predicted <= written + max(0.05 * written, 64 * 1024), method


@pytest.mark.parametrize("method", WHOLE_ONLY)
def test_so_it_is_for_methods_about_the_whole_model(method: str, minilm: Path, tmp_path: Path) -> None:
    carrier = attach(load_base(str(minilm), kind="sequence_classification"), head="mean", labels=3)
    if method == "cpt":
        carrier = carrier_of(save_tiny("llama", tmp_path / "model"), "causal_lm", "lm")
    modules, row = carrier.modules, METHODS[method]
    sizes = row.sizes(modules)
    part = Part.of(method, row.knobs(modules, sizes[len(sizes) // 2]))
    configuration = Configuration.of({WHOLE: [part]}, Training(((method, 1e-3),), 1e-3, 16))
    adapted = adapt(carrier, configuration, modules, seed=0)
    save_adapter(adapted, tmp_path / "adapter", meta={"trial": "t0000", "seed": 0})
    written = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    predicted = adapter_bytes(configuration, modules, adapted.head_params)
    assert written <= predicted <= written + max(0.05 * written, 64 * 1024)


def test_size_counts_four_bytes_per_parameter_and_something_for_every_part(minilm: Path) -> None:
    modules = attach(load_base(str(minilm), kind="sequence_classification"), head="mean", labels=2).modules
    training = Training((("lora", 1e-3),), 1e-3, 16)
    site = modules.select(["query"])[0]

    def size(rank: int, head: int = 0) -> int:
        part = Part.of("lora", METHODS["lora"].knobs(site, rank))
        return adapter_bytes(Configuration.of({site.name: [part]}, training), modules, head)

    empty = Configuration.of({}, training)
    assert 0 < adapter_bytes(empty, modules, 0) < size(1)
    assert size(3) - size(2) == 4 * (site.in_features + site.out_features)
    assert size(2, 1000) - size(2) == 4000
    with pytest.raises(ValueError, match="negative"):
        adapter_bytes(empty, modules, -1)
