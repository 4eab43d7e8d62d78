from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_search import ExampleSearch, configuration, division
from rich.console import Console

from autopeft.cli.flags import parse_flags
from autopeft.cli.parser import build_parser
from autopeft.errors import RunFolderError
from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.report import gather, report, summary
from autopeft.report.axes import Axis
from autopeft.report.command import command
from autopeft.report.facts import Facts
from autopeft.report.gallery import gallery
from autopeft.search.division import Division
from autopeft.spec import Budget, SearchSpec, Task
from autopeft.spec.parse import spec_to_dict

VOID = {"meta", "br", "wbr"}


class Checked(HTMLParser):
    """Notes tags, text and whatever would be fetched; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + "\n"


def page(folder: Path) -> Checked:
    return Checked(Path(report(folder)).read_text(encoding="utf-8"))


def shown(folder: Path, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary(folder))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def facts(folder: Path, running: bool = False) -> Facts:
    return gather(SearchLog.fold(read_journal(folder)), running)


def verdict(search: ExampleSearch, name: str, takes: str) -> Path:
    """A search up to a verdict of this name."""
    search.head()
    lora, mix = search.explore()
    search.add("finalists", baseline=lora, challenger=mix, seeds=[1, 2])
    search.add("verdict", name=name, difference=0.0, low=-0.01, high=0.01, takes=takes, reason="so it is", seeds=[1, 2])
    search.add("finished", status="found", result={})
    search.journal.close()
    return Path(search.journal.folder)


def test_the_answer_comes_first_and_the_page_needs_nothing_else(tmp_path: Path) -> None:
    ExampleSearch(tmp_path / "run").whole()
    found = page(tmp_path / "run")
    assert found.fetched == []
    assert not {"link", "img", "iframe"} & set(found.tags)
    answer = "Take lora+bias: it is better than a tuned LoRA, with 72% fewer adapter parameters."
    assert answer in found.text
    assert found.text.index(answer) < found.text.index("Comparison")
    for fact in (
        "0.8850",
        "0.8660 to 0.9040",
        "0.8794",
        "opened once, after the decision",
        "20.7 k",
        "300 MiB",
        "limit 1.0 GiB",
        "linear probe",
        "0.8120",
        "the loss became NaN at row 640",
        "max_memory",
        "3 duplicates of validation rows",
        "the model's attention does not go through the interface",
        "autopeft search --model models/minilm --data data/sst2",
    ):
        assert fact in found.text, fact
    assert found.tags.count("svg") == 8


def test_the_terminal_says_the_same_at_any_width(tmp_path: Path) -> None:
    ExampleSearch(tmp_path / "run").whole()
    for width in (60, 80, 140):
        text = shown(tmp_path / "run", width)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "Take lora+bias" in text.splitlines()[1]
    wide = shown(tmp_path / "run", 140)
    for fact in (
        "> best of the space",
        "0.8850",
        "0.866-0.904",
        "0.8794",
        "tuned LoRA",
        "linear probe",
        "4 min 1 s of 30 min",
    ):
        assert fact in wide, fact
    assert "6 completed, 1 failed, 1 stopped; not trained for breaking a limit: 1" in wide


def test_biases_that_plain_peft_does_not_take_back_are_said(tmp_path: Path) -> None:
    for target, said in (("any", False), ("peft", True)):
        ExampleSearch(tmp_path / target, target=target).whole()
        assert ("does not restore them" in page(tmp_path / target).text) == said
        assert ("does not restore them" in shown(tmp_path / target, 300)) == said
    lora = verdict(ExampleSearch(tmp_path / "lora", target="peft"), "worse", "baseline")
    assert "does not restore them" not in page(lora).text


def test_the_terminal_names_who_scored_what_and_what_is_next(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    written = search.add

    def add(type: str, /, later: float = 0.0, **data: Any) -> None:
        if type == "finished":
            scores = {"winner": {"accuracy": 0.91}, "challenger": {"accuracy": 0.91}, "baseline": {"accuracy": 0.82}}
            data["result"] = {**data["result"], "eval_sets": {"web": {"rows": 600, "evaluated": 300, **scores}}}
        written(type, later, **data)

    search.add = add  # type: ignore[method-assign]
    search.whole()
    text = shown(tmp_path / "run", 200)
    assert "web: accuracy on 300 of 600 rows: the winner 0.9100, tuned LoRA 0.8200 (decided nothing)" in text
    assert "lora+bias minus tuned LoRA: +0.0130 accuracy (95 %: +0.0040 to +0.0220" in text
    assert "sure:   not sure, LoRA hardly tuned" in text
    assert "autopeft predict runs/first --input FILE" in text
    heads = re.search("<th>eval set.*?</thead>", Path(report(tmp_path / "run")).read_text(encoding="utf-8"))
    assert heads is not None
    assert re.findall("<th>(.*?)</th>", heads[0]) == ["eval set", "rows", "winner&#x27;s accuracy", "tuned LoRA"]
    assert "lora+bias" in shown(tmp_path / "run", 70).split("linear probe")[0].split("95 %", 2)[-1]


def test_the_classes_that_the_winner_does_worst_on_come_first(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    written = search.add
    recalls = {"zeta": (0.9, 50), "bad, few": (0.2, 5), "gamma": (0.5, 30), "bad, many": (0.2, 40)}

    def add(type: str, /, later: float = 0.0, **data: Any) -> None:
        if type == "finished":
            classes = [
                {"label": name, "rows": rows, "winner": {"recall": recall, "f1": 0.5}, "opponent": None}
                for name, (recall, rows) in recalls.items()
            ]
            data["result"] = {**data["result"], "slices": {"split": "test", "classes": classes}}
        written(type, later, **data)

    search.add = add  # type: ignore[method-assign]
    search.whole()
    text = page(tmp_path / "run").text
    places = [text.index(name) for name in ("bad, many", "bad, few", "gamma", "zeta")]
    assert places == sorted(places)


def test_only_broken_limits_count_as_broken_limits(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run").whole()
    constraints = [record.data["constraint"] for record in search.journal.records if record.type == "rejected"]
    assert sorted(constraints) == ["duplicate", "duplicate", "max_memory", "plain_lora"]
    assert facts(tmp_path / "run").rejected == {"max_memory": 1}
    text = page(tmp_path / "run").text
    assert "Never trained" in text
    assert "duplicate\n" not in text
    assert "plain_lora" not in text


def test_the_limits_shown_are_those_of_now(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    assert facts(tmp_path / "run").limit == 1800.0
    assert search.journal.records[-1].data.keys() == {*division().to_dict(), "started"}
    for now, limit, said in (({"max_time": 3600.0, "max_memory": 2**31}, 3600.0, " of 1 h"), ({}, None, None)):
        budget = {name: getattr(Budget(**now), name) for name in Budget.__dataclass_fields__}
        search.add("resumed", records=len(search.journal.records), reopened=False)
        search.add("plan", **division().to_dict(), started=7.0, budget=budget)
        found = facts(tmp_path / "run")
        assert found.limit == limit
        assert dict(found.limits) == now
        line = next(line for line in shown(tmp_path / "run").splitlines() if line.startswith("time:"))
        assert (said or "7.0 s in") in line
        assert (" of " in line) == (said is not None)
    assert Division.from_dict(dict(found.plan)) == division()


@pytest.mark.parametrize(
    ("name", "metric", "short", "said"),
    [
        ("tie", "accuracy", r"\d+ of 1,000 simulated ones", r"validation rows and 2 seeds were better\. Of 200 whole"),
        ("within", "accuracy", r"0 of 200 simulated searches", r"nothing but LoRA keeps the margin, 0 ended so"),
        ("better", "pearson", r"not known for pearson", r"simulated for shares of rows only"),
    ],
)
def test_how_often_such_a_verdict_errs_stands_beside_it(
    tmp_path: Path, name: str, metric: str, short: str, said: str
) -> None:
    folder = verdict(ExampleSearch(tmp_path / "run"), name, "challenger")
    log = SearchLog.fold(read_journal(folder))
    log.header["task"]["metric"] = metric
    for trial in log.trials.values():
        trial.rungs = [replace(rung, metrics={**rung.metrics, metric: 0.8}) for rung in trial.rungs]
    calibration = gather(log).calibration
    assert calibration is not None
    assert re.fullmatch(short, calibration[0])
    assert re.search(said, calibration[1])


def test_what_is_not_sure_has_no_rate(tmp_path: Path) -> None:
    unsure = verdict(ExampleSearch(tmp_path / "unsure"), "unconfirmed", "challenger")
    assert facts(unsure).calibration is None
    assert "such a verdict" not in page(unsure).text + shown(unsure)
    tie = verdict(ExampleSearch(tmp_path / "tie"), "tie", "challenger")
    assert "How often such a verdict errs" in page(tie).text
    assert "How often such a verdict errs" in shown(tie)


@pytest.mark.parametrize(
    ("name", "takes", "sentence"),
    [
        (
            "tie",
            "challenger",
            "Take lora+bias: no difference from a tuned LoRA was found, with 72% fewer adapter parameters.",
        ),
        (
            "tie",
            "baseline",
            "Take the tuned LoRA: no difference from lora+bias was found, and lora+bias does not cost less.",
        ),
        (
            "within",
            "challenger",
            "Take lora+bias: it is worse than a tuned LoRA by less than the margin, with 72% fewer adapter parameters.",
        ),
        ("worse", "baseline", "Take the tuned LoRA: nothing in this space beat it, lora+bias is worse."),
        ("unconfirmed", "challenger", "Take lora+bias for now: it scored higher, but that is not confirmed."),
    ],
)
def test_every_verdict_is_a_plain_sentence(tmp_path: Path, name: str, takes: str, sentence: str) -> None:
    folder = verdict(ExampleSearch(tmp_path / "run"), name, takes)
    assert facts(folder).headline.removesuffix(" But LoRA had only 1 trial here, too few to be tuned.") == sentence
    assert next(contender for contender in facts(folder).contenders if contender.taken).label == (
        "tuned LoRA" if takes == "baseline" else "best of the space"
    )
    assert facts(folder).headline in page(folder).text


def test_an_adapter_below_the_linear_probe_is_said_to_be(tmp_path: Path) -> None:
    folder = verdict(ExampleSearch(tmp_path / "run"), "better", "challenger")
    assert "on the frozen base" not in facts(folder).detail
    with Journal.resume(folder) as journal:
        journal.append(
            "probe", kind="heads", values={"scores": {"mean": 0.95}, "head": "mean", "score": 0.95}, seconds=1.0
        )
    assert "Caution: A linear probe on the frozen base scores 0.9500" in facts(folder).detail
    assert facts(folder).headline.endswith("But a linear probe on the frozen base does as well.")


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    hostile = "</title><script>alert(1)</script>\"'&[bold red]<img src=x onerror=alert(2)>"
    search = ExampleSearch(tmp_path / "run", name=hostile)
    search.head()
    hash = search.configure(configuration("lora", 8), "baseline", 73_728)
    trial = search.begin(hash, "baseline")
    search.rung(trial, 0, 1000, 0.8)
    search.end(trial, "failed", "error", hostile)
    search.add("note", text=hostile)
    search.add("rejected", hash="f", arm=hostile, index=0, values={}, constraint=hostile, value=2, limit=1)
    search.journal.close()
    found = page(tmp_path / "run")
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert found.text.count("<script>alert(1)</script>") >= 4
    assert "[bold red]" in shown(tmp_path / "run", 140)


def test_a_search_can_be_looked_at_while_it_runs_and_after_it_died(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    assert "The search is running; no trial has reached a rung yet." in page(tmp_path / "run").text
    search.head()
    assert "The search is running" in shown(tmp_path / "run")
    search.explore()
    text = shown(tmp_path / "run", 140)
    assert "the best so far is lora+bias with accuracy 0.8800 on validation, not confirmed" in text
    search.journal.close()
    assert "The search ended without a result" in shown(tmp_path / "run")
    assert "It goes on with --resume." in page(tmp_path / "run").text
    with Journal.resume(tmp_path / "run") as journal:
        journal.append("interrupted", signal="SIGINT")
        assert "The search was stopped" in shown(tmp_path / "run")
        journal.append("resumed", records=1)
        assert "The search is running" in shown(tmp_path / "run")


def test_a_search_without_a_feasible_configuration_says_why(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    search.add(
        "finished", status="infeasible", result={"message": "the smallest needs 1,536 parameters", "winner": None}
    )
    search.journal.close()
    text = shown(tmp_path / "run")
    assert "No configuration fits the limits." in text
    assert "the smallest needs 1,536 parameters" in text
    page(tmp_path / "run")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    for read in (report, summary):
        with pytest.raises(RunFolderError, match="holds no run"):
            read(tmp_path)


def test_answer_generation_metrics_are_compared_by_likelihood_until_the_end(tmp_path: Path) -> None:
    with Journal.create(tmp_path) as journal:
        journal.append("search_started", schema=1, task={"metric": "exact_match"}, spec={}, model={"base_params": 1000})
        made = configuration("lora", 8)
        for purpose, metrics in (
            ("explore", {"log_likelihood": -1.5}),
            ("confirm", {"log_likelihood": -1.4, "exact_match": 0.4}),
        ):
            journal.append(
                "configuration",
                hash=made.hash,
                configuration=made.to_dict(),
                values={},
                adapter_params=10,
                arm="space",
                predicted_bytes=None,
            )
            journal.append(
                "trial_started", trial=purpose, hash=made.hash, arm="space", purpose=purpose, seed=1, index=0, slot=0
            )
            journal.append("rung", trial=purpose, rung=0, rows=100, metrics=metrics, loss=None, seconds=1.0)
    found = facts(tmp_path)
    assert found.contenders[0].validation == 0.4
    assert found.progress == {"space": [(found.progress["space"][0][0], -1.5)]}
    page(tmp_path)


@pytest.mark.parametrize(("rows", "partial"), [(821, True), (872, False), (None, False)])
def test_a_score_on_part_of_the_test_rows_says_so(tmp_path: Path, rows: int | None, partial: bool) -> None:
    search = ExampleSearch(tmp_path / "run")
    written = search.add

    def add(type: str, /, later: float = 0.0, **data: Any) -> None:
        written(type, later, **({**data, "rows": rows} if type == "test_opened" else data))

    search.add = add  # type: ignore[method-assign]
    search.whole()
    text = page(tmp_path / "run").text
    assert ("on 821 of the 872 test rows; opened once" in text[: text.index("Comparison")]) is partial
    assert ("test (821 of 872 rows)" in text) is partial
    assert ("only 821 of the 872 test rows were read" in shown(tmp_path / "run")) is partial


def test_the_share_of_the_budget_by_outcome_adds_up(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run").whole()
    found = facts(tmp_path / "run")
    log = SearchLog.fold(search.journal.records)
    # All that --max-compute counts.
    assert sum(found.busy.values()) == pytest.approx(log.busy)
    assert found.busy["probes"] > 0
    trials = sum(trial.seconds for trial in log.trials.values())
    assert sum(found.arm_busy.values()) == pytest.approx(trials)
    assert trials < log.busy
    assert found.busy["confirming finalists"] == 120.0
    assert found.busy["failed"] == 5.0


def test_progress_is_that_of_the_trials_that_went_furthest(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    early = search.configure(configuration("lora", 2), "space", 100)
    trial = search.begin(early, "space")
    search.rung(trial, 0, 1000, 0.95)
    search.end(trial, "stopped", "so")
    search.confirm(*search.explore())
    found = facts(tmp_path / "run")
    for curve in found.progress.values():
        assert [used for used, _ in curve] == sorted(used for used, _ in curve)
    assert [round(score, 2) for _, score in found.progress["space"]] == [0.95, 0.85, 0.88], "0.95 was after 1,000 rows"
    assert [round(score, 2) for _, score in found.progress["baseline"]] == [0.80, 0.84, 0.87]
    drawn = gallery(found)["progress"]
    assert "0.8850, mean of its finalist's fresh runs" in "".join(drawn.drawn)
    assert "0.8720, mean of its finalist's fresh runs" in "".join(drawn.drawn)
    assert "below the chart" not in drawn.note


SPECS = [
    SearchSpec(Task(model="models/minilm", data="data/sst2")),
    SearchSpec(
        Task(
            model="my models/it's",
            data="data dir",
            kind="sequence_classification",
            text_columns=("a b", "c"),
            label_column="label",
            metric="f1",
            max_length=64,
            head="mean",
            name="$(rm -rf x)",
        ),
        Budget(max_adapter_params=0.005, max_memory=2**31, max_time=300.0, max_trials=20, target="peft"),
        space="lora-only",
        strategy="random",
        evidence="quick",
        until="decided",
        seed=3,
        workers=2,
        executor="inprocess",
    ),
    SearchSpec(Task(model="m", data="d"), Budget(max_adapter_params=100_000)),
    SearchSpec(Task(model="m", data="d"), Budget(max_adapter_params=1.0, max_latency_overhead=1.1)),
]


@pytest.mark.parametrize("spec", SPECS)
def test_the_command_asks_for_the_same_search(spec: SearchSpec) -> None:
    line = command(spec_to_dict(spec))
    assert line is not None
    words = shlex.split(line)
    assert words[:2] == ["autopeft", "search"]
    assert parse_flags(build_parser().parse_args(words[1:])) == spec


def test_data_in_memory_has_no_command() -> None:
    assert command(spec_to_dict(SearchSpec(Task(model="m", data=[1, 2])))) is None
    assert command({}) is None


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0.0, 10.0, 0, 100), [0, 2, 4, 6, 8, 10]),
        (Axis(-1.5, -1.0, 0, 100), [-1.5, -1.4, -1.3, -1.2, -1.1, -1.0]),
        (Axis(1e-4, 1e-2, 0, 100, log=True), [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2]),
    ],
)
def test_axes_are_marked_at_round_values(axis: Axis, ticks: list[Any]) -> None:
    assert axis.ticks() == pytest.approx(ticks)
    assert axis.place(axis.low) == pytest.approx(0)
    assert axis.place(axis.high) == pytest.approx(100)
