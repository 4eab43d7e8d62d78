"""Workers that come up while the data is read."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

import autopeft.executors as executors
from autopeft.errors import InputError
from autopeft.executors import Starting
from autopeft.spec import SearchSpec


def spec(address: str | None = None) -> SearchSpec:
    return cast(SearchSpec, SimpleNamespace(executor="inprocess", ray_address=address))


class Made:
    """An executor that tells which threads made and closed it."""

    def __init__(self) -> None:
        self.by, self.closed_by = threading.current_thread(), None

    def close(self) -> None:
        self.closed_by = cast(Any, threading.current_thread())


def test_it_is_made_and_closed_by_a_thread_that_lives_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "make", lambda spec: Made())
    starting = Starting(spec())
    made = cast(Any, starting.take())
    assert starting.take() is made
    assert made.by.is_alive()
    assert made.by is not threading.current_thread()
    starting.drop()
    assert made.closed_by is made.by
    assert not made.by.is_alive()
    starting.drop()


def test_what_goes_wrong_is_raised_where_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(spec: SearchSpec) -> Any:
        raise InputError.one("workers", 9, "do not fit", "Use fewer.")

    monkeypatch.setattr(executors, "make", make)
    starting = Starting(spec())
    with pytest.raises(InputError, match="do not fit"):
        starting.take()
    starting.drop()


def test_who_drops_it_early_does_not_wait_and_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    go, closed, made = threading.Event(), threading.Event(), Made()

    def make(spec: SearchSpec) -> Any:
        go.wait()
        return made

    monkeypatch.setattr(executors, "make", make)
    monkeypatch.setattr(made, "close", closed.set)
    starting = Starting(spec())
    starting.drop()
    assert not closed.is_set()
    go.set()
    assert closed.wait(30)


def test_a_cluster_that_is_there_already_is_joined_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Made] = []
    monkeypatch.setattr(executors, "make", lambda spec: made.append(Made()) or made[-1])
    unused = Starting(spec("10.0.0.1:6379"))
    unused.drop()
    assert not made
    starting = Starting(spec("10.0.0.1:6379"))
    assert not made
    assert starting.take() is cast(Any, made[0])
    starting.drop()
