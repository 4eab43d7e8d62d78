"""Trained adapters of every method, as this version of autopeft stores them: one zip per release in ``tests/stored``.

    python tests/stored_adapters.py        # writes tests/stored/VERSION.zip; never over that of a release

In the zip: ``bases/NAME`` (tiny models), ``adapters/NAME`` (of `save_adapter`), and ``expected/NAME.safetensors``
(ids, mask, and the logits that the adapter gave). ``tests/test_stored.py`` reads the zips of all releases.
"""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from compose_models import SomeData
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

import autopeft
from autopeft.compose.adapt import AdaptedModel, adapt
from autopeft.compose.base import Carrier, attach, load_base
from autopeft.compose.store import save_adapter
from autopeft.methods import METHODS
from autopeft.space.configuration import WHOLE, Configuration, Part, Training
from autopeft.space.modules import ModuleMap

STORED = Path(__file__).parent / "stored"
KINDS = {"bert": "sequence_classification", "llama": "causal_lm", "gpt2": "causal_lm"}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}


def make_bases(folder: Path) -> None:
    """A tiny BERT, Llama and GPT-2 with random weights."""
    torch.manual_seed(11)
    bert = AutoModel.from_config(BertConfig(**SIZES))
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, num_key_value_heads=1, pad_token_id=0))
    gpt2 = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=2)
    )
    for name, model in (("bert", bert), ("llama", llama), ("gpt2", gpt2)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder / name)


def carrier_of(folder: Path, name: str, head: str) -> Carrier:
    """A base under a head."""
    base = load_base(folder / name, kind=KINDS[name])
    return attach(base, head=head, labels=3 if name == "bert" else 0, attention="eager")


def examples() -> dict[str, torch.Tensor]:
    """Token ids and mask `[4, 7]`."""
    ids = 3 + torch.arange(28).view(4, 7) * 5 % 61
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"ids": ids, "mask": mask}


def size_of(sizes: Sequence[int]) -> int | None:
    """A middle size; None where there are none."""
    return sizes[min(2, len(sizes) - 1)] if sizes else None


def mixtures(modules: ModuleMap) -> Iterator[dict[str, list[Part]]]:
    """Configurations that together hold every hosted method once, each on a module of its own."""
    left = [method for method in METHODS.values() if method.hosted and any(map(method.fits, modules.sites))]
    while left:
        sites: dict[str, list[Part]] = {}
        for method in list(left):
            free = [site for site in modules.sites if site.name not in sites and method.fits(site)]
            if free:
                left.remove(method)
                sites[free[-1].name] = [Part.of(method.name, method.knobs(free[-1], size_of(method.sizes(free[-1]))))]
        yield sites


def configurations(maps: Mapping[str, ModuleMap]) -> Iterator[tuple[str, str, dict[str, list[Part]]]]:
    """Name, base and head, and parts by module."""
    for where in ("bert/mean", "gpt2/lm"):
        for number, sites in enumerate(mixtures(maps[where])):
            yield f"{where.split('/')[0]}-mixed-{number}", where, sites
    yield "head", "bert/mean", {}
    for where, method in (
        ("bert/stock", "lora"),
        ("llama/lm", "lora"),
        ("llama/lm", "parallel"),
        ("llama/lm", "prefix"),
    ):
        row = METHODS[method]
        fitting = [site for site in maps[where].sites if row.fits(site)]
        parts = {site.name: [Part.of(method, row.knobs(site, row.sizes(site)[1]))] for site in fitting}
        yield f"{where.replace('/', '-')}-{method}", where, parts
    for row in METHODS.values():
        if row.whole and row.unsearchable is None:
            llama = maps["llama/lm"]
            yield (
                f"whole-{row.name}",
                "llama/lm",
                {WHOLE: [Part.of(row.name, row.knobs(llama, size_of(row.sizes(llama))))]},
            )


@torch.no_grad()
def check_that_all_matter(adapted: AdaptedModel, start: Mapping[str, torch.Tensor]) -> None:
    """Raise where the logits would hardly tell whether a method's trained values were lost."""
    data, trained = examples(), adapted.trained()
    expected = adapted(data["ids"], data["mask"])
    groups = {name: [id(p) for p in group] for name, group in adapted.groups().items()}
    for name, members in groups.items():
        kept = {key: p.detach().clone() for key, p in trained.items() if id(p) in members}
        for key in kept:
            trained[key].copy_(start[key])
        change = (adapted(data["ids"], data["mask"]) - expected).abs().max() / expected.abs().max()
        for key, value in kept.items():
            trained[key].copy_(value)
        if change < 1e-3:
            raise SystemExit(f"{name} changes the logits by {change:.1g} only")


def write(target: Path) -> None:
    """Train everything a little and write the zip.

    Raises:
        SystemExit: It is that of a release.
    """
    tags = subprocess.run(["git", "tag", "--list", f"v{target.stem}"], capture_output=True, text=True, check=False)
    if tags.stdout.strip():
        raise SystemExit(f"{target.stem} is released: what it stored never changes")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_bases(root / "bases")
        heads = [where.split("/") for where in ("bert/mean", "bert/stock", "llama/lm", "gpt2/lm")]
        carriers = {f"{base}/{head}": carrier_of(root / "bases", base, head) for base, head in heads}
        maps = {where: carrier.modules for where, carrier in carriers.items()}
        rates = tuple((name, method.rate.default) for name, method in sorted(METHODS.items()))
        for name, where, sites in configurations(maps):
            carrier = carriers[where]
            configuration = Configuration.of(sites, Training(rates, 1e-3, 4))
            adapted = adapt(carrier, configuration, maps[where], seed=1, data=SomeData(carrier.model, 1, tokens=64))
            start = {key: p.detach().clone() for key, p in adapted.trained().items()}
            optimizer = torch.optim.AdamW(list(adapted.trained().values()), lr=3e-2)
            data = examples()
            for _ in range(12):
                optimizer.zero_grad()
                (adapted(data["ids"], data["mask"]).float() - 1).square().mean().backward()
                optimizer.step()
            with torch.no_grad():
                # A few steps from values near zero would hardly show.
                for parameter in adapted.trained().values():
                    parameter.add_(torch.randn_like(parameter) * 0.5)
            adapted.eval()
            check_that_all_matter(adapted, start)
            save_adapter(adapted, root / "adapters" / name, meta={})
            with torch.no_grad():
                expected = {**data, "logits": adapted(data["ids"], data["mask"]).contiguous()}
            (root / "expected").mkdir(exist_ok=True)
            save_file(expected, root / "expected" / f"{name}.safetensors")
        target.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    entry = zipfile.ZipInfo(str(path.relative_to(root)), (1980, 1, 1, 0, 0, 0))
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    write(STORED / f"{autopeft.__version__}.zip")
