"""Fixtures of all tests: nothing outside a temporary folder is written, and no network is used."""

from __future__ import annotations

import atexit
import csv
import gc
import os
import random
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from autopeft.compose.base import Carrier
    from autopeft.trial.setup import WorkSetup

_HOME = tempfile.mkdtemp(prefix="autopeft-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
_RAY_TOKEN = Path(_HOME) / "ray_token"
_RAY_TOKEN.write_text(secrets.token_hex(32))
_RAY_TOKEN.chmod(0o600)
# These are read when the libraries are imported, so they must be set before any test module is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HOME=str(Path(_HOME) / "huggingface"),
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    RAY_AUTH_TOKEN_PATH=str(_RAY_TOKEN),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DISABLE_IMPORT_WARNING="1",
)
# The models are tiny: a second thread gains nothing, and two processes with two threads each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_GOOD = ("a warm and funny", "a wonderful", "a clever", "an honest and moving", "a delightful")
_BAD = ("a dull and tired", "a terrible", "a clumsy", "a boring and hollow", "a dreadful")
_THINGS = ("film", "story", "play", "comedy", "drama", "portrait", "debut", "sequel", "thriller", "tale")
_PLACES = (
    "about a village",
    "of a long summer",
    "set at sea",
    "in three acts",
    "for a rainy day",
    "with one good scene",
)


def pytest_collection_finish() -> None:
    """What was imported stays to the end: a bench that collects garbage after every trial need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for every test, and nothing of the developer's environment that changes results."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AUTOPEFT_HOME", str(home / ".autopeft"))
    monkeypatch.setenv("AUTOPEFT_CACHE", str(home / "cache"))
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    from autopeft.testing.real import minilm_folder

    return minilm_folder()


@pytest.fixture(scope="session")
def short_minilm(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of MiniLM's first two blocks: for tests that ask nothing of the depth, at a third of the work."""
    from transformers import AutoConfig, AutoModel

    from autopeft.compose.base import quiet

    folder = tmp_path_factory.mktemp("short_minilm")
    config = AutoConfig.from_pretrained(minilm, num_hidden_layers=2)
    with quiet():
        AutoModel.from_pretrained(minilm, config=config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (minilm / name).is_file():
            shutil.copy(minilm / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny random models."""
    from compose_models import save_tiny

    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(name, root / name) for name in ("bert", "llama", "gpt2")}


@pytest.fixture(scope="session")
def carriers(folders: dict[str, Path]) -> Iterator[dict[str, Carrier]]:
    """The tiny random models under the head that is most used; no test may write to them."""
    from compose_models import carrier_of

    from autopeft.compose.base import checksum

    kinds = {"bert": ("sequence_classification", "mean"), "llama": ("causal_lm", "lm"), "gpt2": ("causal_lm", "lm")}
    made = {name: carrier_of(folders[name], *kinds[name]) for name in kinds}
    before = {name: checksum(carrier) for name, carrier in made.items()}
    yield made
    assert {name: checksum(carrier) for name, carrier in made.items()} == before


@pytest.fixture(scope="session")
def bert(carriers: dict[str, Carrier]) -> Carrier:
    """The tiny encoder, its hidden states averaged."""
    return carriers["bert"]


@pytest.fixture(scope="session")
def llama(carriers: dict[str, Carrier]) -> Carrier:
    """The tiny decoder."""
    return carriers["llama"]


@pytest.fixture(scope="session")
def prepared(short_minilm: Path, tiny_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> WorkSetup:
    """MiniLM's first two blocks and the short reviews, read and encoded."""
    from autopeft.testing.executors import make_setup

    return make_setup(short_minilm, tiny_reviews, tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def setup(prepared: WorkSetup, tmp_path: Path) -> WorkSetup:
    """What a worker is given for MiniLM's first two blocks, with a run folder of the test's own."""
    return replace(prepared, folder=str(tmp_path))


@pytest.fixture
def whole_setup(prepared: WorkSetup, minilm: Path, tmp_path: Path) -> WorkSetup:
    """The same for the whole of MiniLM."""
    from autopeft.compose.base import load_base

    return replace(prepared, base=load_base(str(minilm), kind=prepared.kind, dtype="float32"), folder=str(tmp_path))


@pytest.fixture
def few_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan predicts memory as rarely as for the largest models: that is what takes its time."""
    monkeypatch.setattr("autopeft.search.preview.PREDICTED_SITES", 1)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder of SmolLM2-135M-Instruct, made once a session."""
    from autopeft.compose.base import plain_folder
    from autopeft.testing.real import smollm2_gguf

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_HOME", str(tmp_path_factory.mktemp("models")))
        return Path(plain_folder(str(smollm2_gguf())))


@pytest.fixture(scope="session")
def tiny_reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation and test CSV files of short reviews: two classes, learnable from single words."""
    folder = tmp_path_factory.mktemp("tiny_reviews")
    texts = [
        (f"{adjective} {thing} {place}", label)
        for label, adjectives in (("positive", _GOOD), ("negative", _BAD))
        for adjective in adjectives
        for thing in _THINGS
        for place in _PLACES
    ]
    random.Random(7).shuffle(texts)
    for name, rows in (("train", texts[:400]), ("validation", texts[400:500]), ("test", texts[500:])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(("text", "label"))
            writer.writerows(rows)
    return folder
