from __future__ import annotations

import ast
import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.errors import DamagedFile, RunFolderError
from autopeft.journal import FIELDS, Journal, SearchLog, read_journal
from autopeft.journal.file import FILE, LOCK, TORN
from autopeft.journal.record import Record, decode, encode, read_data, spell
from autopeft.search.division import Division, Speed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def written(folder: Path, count: int = 3) -> Path:
    with Journal.create(folder) as journal:
        for number in range(count):
            journal.append("note", text=f"note {number}")
    return folder / FILE


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "run") as journal:
        first = journal.append("note", text="Grüße\nzweite Zeile", pair=(1, 2.5))
        journal.append("probe", kind="heads", values={"mean": 0.9}, seconds=1.5)
        assert read_journal(tmp_path / "run") == journal.records
    assert first.data == {"text": "Grüße\nzweite Zeile", "pair": [1, 2.5]}
    assert [record.seq for record in read_journal(tmp_path / "run")] == [0, 1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(values=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_value_survives_and_any_flipped_byte_is_noticed(tmp_path: Path, values: dict[str, object]) -> None:
    with Journal.create(tmp_path, overwrite=True) as journal:
        record = journal.append("probe", kind="heads", values=values, seconds=0.5)
    line = (tmp_path / FILE).read_bytes()
    assert decode(line) == record
    assert encode(record) == line
    for place in range(0, len(line) - 1, 7):
        flipped = bytearray(line)
        flipped[place] ^= 0x11
        with pytest.raises(ValueError):  # noqa: PT011
            decode(bytes(flipped))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_and_leave_no_trace(tmp_path: Path, bad: float) -> None:
    with Journal.create(tmp_path) as journal:
        with pytest.raises(ValueError, match=r"[Oo]ut of range"):
            journal.append("rung", trial="t0", metrics={"accuracy": bad})
        journal.append("note", text="after")
    assert [record.type for record in read_journal(tmp_path)] == ["note"]


def test_unknown_types_and_values_are_refused(tmp_path: Path) -> None:
    with Journal.create(tmp_path) as journal:
        with pytest.raises(ValueError, match="unknown record type 'trail_started'"):
            journal.append("trail_started")
        with pytest.raises(TypeError):
            journal.append("note", text=object())
        assert journal.records == []


def test_a_torn_last_line_is_cut_kept_aside_and_reported(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert [record.seq for record in read_journal(tmp_path)] == [0, 1]
    with Journal.resume(tmp_path) as journal:
        assert journal.repaired is not None
        assert "line 3" in journal.repaired
        assert journal.append("note", text="next").seq == 2
    assert (tmp_path / TORN).read_bytes() == whole.splitlines()[2][:-19] + b"\n"
    assert [record.data["text"] for record in read_journal(tmp_path)] == ["note 0", "note 1", "next"]


def test_every_cut_through_the_last_line_can_be_resumed(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for size in range(begin, len(whole)):
        path.write_bytes(whole[:size])
        with Journal.resume(tmp_path) as journal:
            kept = 3 if size == len(whole) - 1 else 2
            assert len(journal.records) == kept
            assert (journal.repaired is None) == (size == begin)
            journal.append("note", text="next")
        assert len(read_journal(tmp_path)) == kept + 1


def test_blocks_of_zeros_at_the_end_are_a_torn_write(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-30] + b"\0" * 29 + b"\n")
    with Journal.resume(tmp_path) as journal:
        assert len(journal.records) == 2
        assert journal.repaired is not None


def test_a_changed_line_inside_is_refused_by_its_number(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"note 1", b"note X"))
    for open_it in (read_journal, Journal.resume):
        with pytest.raises(DamagedFile, match=r"line 2.*checksum") as error:
            open_it(tmp_path)
        assert error.value.exit_code == 2
    path.write_bytes(path.read_bytes().replace(b"note X", b"note 1"))
    with Journal.resume(tmp_path) as journal:
        assert len(journal.records) == 3


def test_a_missing_line_and_foreign_text_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(DamagedFile, match="record 1 is missing"):
        read_journal(tmp_path)
    path.write_bytes(lines[0] + b"hello\n" + lines[1])
    with pytest.raises(DamagedFile, match=r"line 2.*not a record"):
        read_journal(tmp_path)


def test_seconds_used_go_on_over_sessions_and_never_fall(tmp_path: Path) -> None:
    clock = Clock()
    with Journal.create(tmp_path, clock=clock, started=clock.now - 2.0) as journal:
        assert journal.append("note", text="a").used == 2.0
        clock.now += 10
        assert journal.append("note", text="b").used == 12.0
    later = Clock()
    later.now = 5.0  # a machine that was restarted: its monotonic clock is smaller
    with Journal.resume(tmp_path, clock=later) as journal:
        assert journal.used == 12.0
        later.now += 3
        assert journal.append("resumed", records=2).used == 15.0
        later.now -= 1
        assert journal.append("note", text="c").used == 15.0


def test_a_second_writer_is_told_who_is_first(tmp_path: Path) -> None:
    with Journal.create(tmp_path) as journal:
        journal.append("note", text="a")
        code = f"from autopeft.journal import Journal\nJournal.resume({str(tmp_path)!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"in use by process {os.getpid()}" in done.stderr
        with pytest.raises(RunFolderError, match="in use"):
            Journal.create(tmp_path, overwrite=True)
        assert read_journal(tmp_path) == journal.records
    Journal.resume(tmp_path).close()


def test_a_killed_writer_leaves_a_journal_that_can_be_resumed(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        from autopeft.journal import Journal
        journal = Journal.create({str(tmp_path / "run")!r})
        while True:
            record = journal.append("note", text="x" * 3000)
            print(record.seq, flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().splitlines()]
    with Journal.resume(tmp_path / "run") as journal:
        assert len(journal.records) > max(acknowledged)
        assert journal.append("resumed", records=len(journal.records)).seq == len(journal.records) - 1


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with Journal.create(tmp_path) as journal:
        journal.append("note", text="a")

        def half(file: int, content: bytes) -> int:
            if len(content) > 10:
                return real(file, bytes(content[:10]))
            raise OSError(errno.ENOSPC, "No space left on device")

        line_like = "x" * 15
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(RunFolderError, match="No space left"):
            journal.append("note", text=line_like)
        monkeypatch.undo()
        assert journal.append("note", text="b").seq == 1
    assert [record.data["text"] for record in read_journal(tmp_path)] == ["a", "b"]


def intact(folder: Path, journal: Journal, before: list[Any]) -> bool:
    """Whether an interrupted append of "b" left file and records in agreement, and the next one succeeds."""
    for content in ("c", "d"):
        journal.append("note", text=content)
    assert read_journal(folder) == journal.records
    texts = [record.data["text"] for record in journal.records[len(before) :]]
    assert journal.records[: len(before)] == before
    assert texts in (["c", "d"], ["b", "c", "d"])
    return texts[0] == "b"


def after(call: Callable[..., Any], *given: Any) -> None:
    call(*given)
    raise KeyboardInterrupt


def instead(call: Callable[..., Any], *given: Any) -> None:
    raise KeyboardInterrupt


def half_of_it(write: Callable[..., Any], file: int, line: bytes) -> None:
    write(file, bytes(line[: len(line) // 2]))
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("call", "how"),
    [("write", instead), ("write", half_of_it), ("write", after), ("fsync", instead), ("fsync", after)],
)
@pytest.mark.parametrize("twice", [False, True])
def test_an_interrupted_append_leaves_a_whole_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, how: Callable[..., None], twice: bool
) -> None:
    real = getattr(os, call)
    with Journal.create(tmp_path) as journal:
        journal.append("note", text="a")
        before = list(journal.records)
        monkeypatch.setattr(os, call, lambda *given: how(real, *given))
        if twice:  # the second signal comes while the first one's line is taken back
            monkeypatch.setattr(os, "ftruncate", lambda *given: instead(os.ftruncate, *given))
        with pytest.raises(KeyboardInterrupt):
            journal.append("note", text="b")
        monkeypatch.undo()
        assert not intact(tmp_path, journal, before)
    with Journal.resume(tmp_path) as journal:
        assert journal.repaired is None


def test_an_append_may_be_interrupted_between_any_two_instructions(tmp_path: Path) -> None:
    """A signal's handler runs between instructions: each one of this file is a place where it may raise."""
    code, earlier = sys.modules[Journal.__module__].__file__, sys.gettrace()
    left, outcomes = 0, set()

    def interrupt(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return interrupt

    with Journal.create(tmp_path) as journal:
        for place in range(10_000):
            left, before = place, list(journal.records)
            sys.settrace(interrupt)
            try:
                journal.append("note", text="b")
            except KeyboardInterrupt:
                sys.settrace(earlier)
                outcomes.add(intact(tmp_path, journal, before))
            else:
                break
            finally:
                sys.settrace(earlier)
    assert place > 100
    assert outcomes == {False, True}


def test_a_folder_with_foreign_files_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="not a run of autopeft"):
            Journal.create(tmp_path, overwrite=overwrite)
    (tmp_path / FILE).write_text('{"systemd": 1}\n')
    with pytest.raises(RunFolderError, match="not a run of autopeft"):
        Journal.create(tmp_path, overwrite=True)
    (tmp_path / FILE).write_text('{"systemd": 1}')
    with pytest.raises(RunFolderError, match="not a run of autopeft"):
        Journal.create(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / LOCK).exists()


def test_overwrite_replaces_a_run_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("kept")
    run = tmp_path / "run"
    written(run)
    (run / "trials").mkdir()
    (run / "trials" / "t0").write_text("old")
    (run / "link").symlink_to(outside)
    with pytest.raises(RunFolderError, match=r"--resume.*--overwrite"):
        Journal.create(run)
    with Journal.create(run, overwrite=True) as journal:
        assert journal.records == []
    assert sorted(entry.name for entry in run.iterdir()) == [FILE, LOCK]
    assert (outside / "keep").read_text() == "kept"


def test_folders_that_hold_no_run_are_named(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunFolderError, match=r"no journal\.jsonl"):
            read_journal(missing)
        with pytest.raises(RunFolderError, match=r"no journal\.jsonl"):
            Journal.resume(missing)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        Journal.create(tmp_path / "file")


def test_the_documented_schema_is_the_one_in_the_code() -> None:
    text = (Path(__file__).parent.parent / "docs" / "journal.md").read_text()
    rows = {row.split("|")[1].strip(" `"): row for row in text.splitlines() if row.startswith("| `")}
    documented = {name: rows[name] for name in rows if name in FIELDS}
    assert set(documented) == set(FIELDS)
    for name, members in FIELDS.items():
        missing = [member for member in members if f"`{member}`" not in documented[name]]
        assert not missing, (name, missing)


def test_the_plan_is_a_division() -> None:
    assert set(FIELDS["plan"]) == {*Division.__dataclass_fields__, "started", "budget"}
    text = (Path(__file__).parent.parent / "docs" / "journal.md").read_text()
    row = next(row for row in text.splitlines() if row.startswith("| `plan`"))
    assert all(f"`{field.name}`" in row for field in fields(Speed))


def test_the_search_writes_no_member_that_readers_do_not_know() -> None:
    written = []
    for path in (Path(__file__).parent.parent / "autopeft" / "search").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            name = call.args[0] if isinstance(call, ast.Call) and call.args else None
            if isinstance(name, ast.Constant) and name.value in FIELDS and ast.unparse(call.func).endswith("write"):
                written.append(name.value)
                unknown = {keyword.arg for keyword in call.keywords} - {*FIELDS[name.value], None}
                assert not unknown, (path.name, name.value, unknown)
    assert {"plan", "finalists", "resumed", "trial_ended", "retried"} <= set(written)


def started(journal: Journal, trial: str, hash: str, arm: str, purpose: str = "explore", seed: int = 0) -> None:
    journal.append(
        "trial_started", trial=trial, hash=hash, arm=arm, purpose=purpose, seed=seed, index=0, slot=0
    )  # fmt: skip


def test_the_log_follows_trials_through_rungs_retries_and_ends(tmp_path: Path) -> None:
    with Journal.create(tmp_path) as journal:
        journal.append("search_started", schema=1, task={"metric": "accuracy"})
        for hash, arm in (("aa", "baseline"), ("bb", "space")):
            journal.append(
                "configuration", hash=hash, configuration={}, values={}, adapter_params=9, arm=arm, predicted_bytes=None
            )
            started(journal, f"t-{hash}", hash, arm)
        journal.append("rung", trial="t-aa", rung=0, rows=100, metrics={"accuracy": 0.9}, seconds=2.0)
        journal.append("decision", trial="t-aa", rung=0, action="pause", reason="not in the top third")
        journal.append("rung", trial="t-bb", rung=0, rows=100, metrics={"accuracy": 0.6}, seconds=2.0, peak_bytes=7)
        journal.append("decision", trial="t-bb", rung=0, action="continue", reason="in the top third")
        log = SearchLog.fold(journal.records)
        assert log.trials["t-aa"].status == "paused"
        assert log.best() == (log.trials["t-aa"], 0.9)
        for record in (
            journal.append("rung", trial="t-bb", rung=1, rows=300, metrics={"accuracy": 0.7}, seconds=4.0),
            journal.append("retried", trial="t-bb", reason="lost", attempt=2, seconds=1.5),
            journal.append("retried", trial="t-bb", reason="lost", attempt=3),
            journal.append("rung", trial="t-bb", rung=0, rows=100, metrics={"accuracy": 0.61}, seconds=2.0),
            journal.append("rung", trial="t-bb", rung=1, rows=300, metrics={"accuracy": 0.71}, seconds=4.0),
            journal.append("trial_ended", trial="t-bb", status="completed", reason=None, detail=None),
            journal.append("finalists", baseline="aa", challenger="bb", seeds=[1, 2]),
            journal.append("verdict", name="better", takes="challenger"),
        ):
            log.apply(record)
        assert log == SearchLog.fold(journal.records)
    trial = log.trials["t-bb"]
    assert [(rung.rung, rung.metrics["accuracy"]) for rung in trial.rungs] == [(0, 0.61), (1, 0.71)]
    assert (trial.attempts, trial.rows, trial.status) == (3, 300, "completed")
    assert (trial.lost_seconds, trial.seconds) == (1.5, 2.0 + 4.0 + 1.5)
    assert log.best() == (trial, 0.71)
    assert log.best(arm="baseline") == (log.trials["t-aa"], 0.9)
    assert log.best(purpose="confirm") is None
    assert log.counts["completed"] == 1
    assert log.counts["paused"] == 1
    assert log.winner == "bb"


def test_the_seconds_of_a_job_that_failed_count(tmp_path: Path) -> None:
    with Journal.create(tmp_path) as journal:
        started(journal, "t0", "aa", "space")
        journal.append("rung", trial="t0", rung=0, rows=100, metrics={}, seconds=2.0)
        journal.append("retried", trial="t0", reason="lost", attempt=2, seconds=3.0)
        journal.append("trial_ended", trial="t0", status="failed", reason="nan", detail=None, seconds=4.0)
        started(journal, "t1", "aa", "space")
        journal.append("trial_ended", trial="t1", status="stopped", reason="late", detail=None, seconds=None)
    log = SearchLog.fold(read_journal(tmp_path))
    assert (log.trials["t0"].lost_seconds, log.trials["t0"].seconds) == (7.0, 9.0)
    assert (log.trials["t1"].lost_seconds, log.trials["t1"].seconds) == (0.0, 0.0)


def test_the_log_passes_over_what_later_versions_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIELDS, "novelty", ())
    with Journal.create(tmp_path) as journal:
        journal.append("novelty", trial="t0")
        started(journal, "t0", "aa", "space")
        journal.append("rung", trial="t0", rung=0, rows=1, metrics={}, invented=5)
    log = SearchLog.fold(read_journal(tmp_path))
    assert log.trials["t0"].rows == 1
    assert log.best() is None


KEYS = st.sampled_from(["values", "configuration", "hash", 'a"},"values":{"', "b"])
NESTED = st.recursive(
    st.none() | st.integers() | st.sampled_from(["x", '},"values":{', "}", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(KEYS, NESTED, max_size=4), st.dictionaries(KEYS, NESTED, max_size=4), st.booleans())
def test_configurations_are_read_as_they_were_written(configuration: dict, values: dict, swapped: bool) -> None:
    members = {"hash": "aa", "configuration": configuration, "values": values, "adapter_params": 5, "arm": "space"}
    if swapped:
        members = dict(reversed(members.items()))
    line = encode(Record(3, "configuration", 1.0, "now", members))
    read = decode(line).data
    assert {**read, "configuration": dict(read["configuration"])} == members
    again = read_data("configuration", spell(members))
    assert {**again, "configuration": dict(again["configuration"])} == members
    # Other records may hold configurations, and more of the same words.
    other = {"status": "found", "result": {"winner": members, "baseline": members}}
    assert decode(encode(Record(4, "finished", 1.0, "now", other))).data == other


def test_a_long_journal_is_read_whole(tmp_path: Path) -> None:
    Journal.create(tmp_path).close()
    with Journal.create(tmp_path / "one") as journal:
        one = journal.append("decision", trial="t0", rung=0, action="stop", reason="below the median")
    with (tmp_path / FILE).open("wb") as file:
        for seq in range(20_000):
            file.write(encode(type(one)(seq, one.type, one.used, one.time, one.data)))
    assert len(read_journal(tmp_path)) == 20_000
    assert json.loads((tmp_path / FILE).read_bytes().splitlines()[-1])["seq"] == 19_999
