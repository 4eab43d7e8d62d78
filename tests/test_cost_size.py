"""Size of a saved adapter, predicted from above."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.compose.adapt import adapt
from autopeft.compose.base import attach, load_base
from autopeft.compose.store import save_adapter
from autopeft.cost.size import adapter_bytes
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part, Training


@pytest.mark.parametrize("head", ["mean", "stock"])
def test_a_saved_folder_is_at_most_as_large_and_not_much_smaller(head: str, minilm: Path, tmp_path: Path) -> None:
    carrier = attach(load_base(str(minilm), kind="sequence_classification"), head=head, labels=150)
    modules = module_map(carrier.model)
    for method, row in METHODS.items():
        sites = [site for site in modules.sites if row.fits(site)]
        parts = {site.name: [Part.of(method, row.knobs(site, 8 if row.size else None))] for site in sites}
        configuration = Configuration.of(parts, Training(((method, 1e-3),), 1e-3, 16))
        adapted = adapt(carrier, configuration, modules, seed=0)
        folder = tmp_path / method
        save_adapter(adapted, folder, meta={"trial": "t0000", "seed": 0})
        written = sum(path.stat().st_size for path in folder.iterdir())
        predicted = adapter_bytes(adapted.adapter_params, adapted.head_params, len(sites))
        assert written <= predicted <= written + max(0.05 * written, 64 * 1024), method


def test_size_counts_four_bytes_per_parameter_and_something_for_every_part() -> None:
    assert adapter_bytes(0, 0, 0) > 0
    assert adapter_bytes(1000, 0, 3) - adapter_bytes(0, 0, 3) == 4000
    assert adapter_bytes(0, 1000, 3) - adapter_bytes(0, 0, 3) == 4000
    assert adapter_bytes(10, 0, 4) > adapter_bytes(10, 0, 3)
    with pytest.raises(ValueError, match="negative"):
        adapter_bytes(-1, 0, 0)
