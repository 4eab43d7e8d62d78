from __future__ import annotations

from pathlib import Path

import pytest

from autopeft import catalogue
from autopeft.errors import InputError
from autopeft.space import bind, resolve, validate
from autopeft.strategy import validate as validate_strategy

SPACES, STRATEGIES = catalogue.names("spaces"), catalogue.names("strategies")


def head(text: str) -> dict[str, str]:
    """The paragraphs of a head comment by their first word."""
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        body = line[1:].strip()
        word, colon, rest = body.partition(":")
        if colon and word.isalpha() and word[0].isupper():
            key, body = word, rest.strip()
        found[key] = f"{found.get(key, '')} {body}".strip()
    return found


def test_the_catalogue_is_not_empty():
    assert {"hybrid", "lora", "adapters", "autopeft", "minimal", "mergeable"} <= set(SPACES)
    assert {"random", "tpe", "tpe-asha", "hyperband"} <= set(STRATEGIES)


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_complete_and_says_what_it_is_for(name: str):
    values = catalogue.read("spaces", name)
    assert validate(values) == []
    assert values["name"] == name
    said = head(catalogue.text("spaces", name))
    for key in ("Purpose", "Cost", "Paper", "Command"):
        assert len(said[key]) > 20
    assert "arXiv" in said["Paper"]
    wanted = f"--preset {name}" if name in catalogue.presets() else f"--space {name}"
    assert wanted in said["Command"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_complete_and_says_what_it_is_for(name: str):
    values = catalogue.read("strategies", name)
    assert validate_strategy(values) == []
    assert values["name"] == name
    said = head(catalogue.text("strategies", name))
    assert all(said[key] for key in ("Purpose", "Paper", "Command"))


@pytest.mark.parametrize("name", SPACES)
def test_resolved_spaces_differ_and_resolve_again(name: str):
    space = resolve(catalogue.read("spaces", name))
    assert resolve(space.to_dict()).fingerprint == space.fingerprint
    others = {resolve(catalogue.read("spaces", other)).fingerprint for other in SPACES if other != name}
    assert space.fingerprint not in others


def test_mergeable_really_is():
    from space_models import MODELS

    space = bind(resolve(catalogue.read("spaces", "mergeable")), MODELS["bert"], kind="regression", target="merged")
    assert dict(space.left_out) == {}


@pytest.mark.parametrize(
    "name",
    ["../hybrid", "/etc/passwd", "hybrid.json", "a\0b", "", " ", "Hybrid", "hybrid/", "x" * 99, "..", "hybrid\n", None],
)  # fmt: skip
@pytest.mark.parametrize("what", ["spaces", "strategies"])
def test_names_that_are_none_are_refused(what: str, name: object):
    with pytest.raises(InputError) as caught:
        catalogue.find(what, name)  # type: ignore[arg-type]
    assert caught.value.problems[0].field == {"spaces": "space", "strategies": "strategy"}[what]


def test_a_slip_gets_the_close_match():
    for given in ("hybird", "hybird.yaml", "../hybrid"):
        with pytest.raises(InputError, match="Did you mean hybrid"):
            catalogue.read("spaces", given)
    with pytest.raises(InputError, match="spaces, strategies"):
        catalogue.names("methods")


def test_files_of_the_user(tmp_path: Path):
    own = catalogue.copy("spaces", "lora", tmp_path)
    assert own == tmp_path / "lora.yaml"
    assert own.read_text() == catalogue.text("spaces", "lora") == catalogue.text("spaces", str(own))
    assert catalogue.find("spaces", str(own)) == own
    other = catalogue.copy("spaces", str(own), tmp_path / "mine.yaml")
    assert catalogue.read("spaces", str(other)) == catalogue.read("spaces", "lora")
    for target in (own, tmp_path, tmp_path / "x.txt", tmp_path / "none" / "x.yaml", "a\0.yaml", ""):
        with pytest.raises(InputError):
            catalogue.copy("spaces", "lora", target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.yaml", "mine.yaml"]


def test_a_file_is_named_after_itself_and_errors_have_lines(tmp_path: Path):
    file = tmp_path / "team.yaml"
    file.write_text("methods: [lora]\n")
    assert resolve(catalogue.read("spaces", str(file))).name == "team"
    file.write_text("methods: [lora]\nbatch: [8\nname: x\n")
    with pytest.raises(InputError, match="line 3"):
        catalogue.read("spaces", str(file))
    file.write_text("- lora\n")
    with pytest.raises(InputError, match="fields and values"):
        catalogue.read("spaces", str(file))


def test_a_name_never_looks_into_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lora").write_text("name: evil\n")
    monkeypatch.chdir(tmp_path)
    assert catalogue.read("spaces", "lora")["name"] == "lora"
    with pytest.raises(InputError):
        catalogue.find("spaces", "evil")


def test_the_published_pair():
    pair = catalogue.preset("autopeft")
    assert (pair.space, pair.strategy) == ("autopeft", "tpe")
    assert validate_strategy(catalogue.read("strategies", str(pair.strategy))) == []
    with pytest.raises(InputError, match="preset"):
        catalogue.preset("hybrid")
