"""How many workers a cluster has room for, and what each of them gets of its node: arithmetic over plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autopeft.errors import InputError
from autopeft.spec.amounts import format_bytes

MOST_THREADS = 4
"""Threads of a worker that computes on a GPU: what tokenised batches and the optimizer's bookkeeping can use."""
STORE_SHARE = 0.9
"""Share of an object store that base and data may fill: Ray keeps arguments and results there as well."""
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Node:
    """A living node of a cluster.

    Attributes:
        id: Ray's id of it.
        cpus: Cores that it declares.
        gpus: GPUs that it declares.
        store: Bytes of its object store.
    """

    id: str
    cpus: float
    gpus: float
    store: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker asks Ray for, and how many threads it computes with.

    Attributes:
        gpus: GPUs, or a fraction of one.
        cpus: Cores; a fraction where a node has fewer cores than workers.
        threads: Threads.
    """

    gpus: float
    cpus: float
    threads: int


def on_gpus(node: Node, gpus: float) -> int:
    """Workers that the GPUs of a node hold: a fraction of a GPU never comes from two of them.

    Args:
        node: The node.
        gpus: What each worker asks for, above 0.
    """
    if gpus >= 1:
        return int((node.gpus + _ROUNDING) // gpus)
    return int(node.gpus + _ROUNDING) * int(1 / gpus + _ROUNDING)


def share(nodes: Iterable[Node], gpus: float) -> Share:
    """What a worker gets, so that as many fit on every node as its GPUs hold.

    Args:
        nodes: The nodes of the cluster.
        gpus: GPUs per worker; 0 for workers on cores, which get one each.
    """
    if gpus == 0:
        return Share(0.0, 1.0, 1)
    fair = min((node.cpus / on_gpus(node, gpus) for node in nodes if on_gpus(node, gpus)), default=1.0)
    # Ray counts in ten-thousandths; rounded down, so that all of them fit.
    return Share(gpus, min(1.0, math.floor(100 * fair) / 100), max(1, min(MOST_THREADS, int(fair))))


def room(nodes: Iterable[Node], wants: Share) -> list[int]:
    """Workers that every node holds."""
    held = []
    for node in nodes:
        by_cpus = math.inf if wants.cpus == 0 else (node.cpus + _ROUNDING) // wants.cpus
        by_gpus = math.inf if wants.gpus == 0 else on_gpus(node, wants.gpus)
        held.append(int(min(by_cpus, by_gpus)))
    return held


def check_fraction(gpus: float) -> None:
    """Refuse what Ray cannot place.

    Raises:
        InputError: More than one GPU and a fraction.
    """
    if gpus > 1 and gpus != int(gpus):
        raise InputError.one(
            "gpus_per_trial",
            gpus,
            "must be a whole number above 1: a worker gets a part of one GPU, or whole ones",
            f"Give {int(gpus)} or {int(gpus) + 1}.",
        )


def check_room(nodes: Sequence[Node], wants: Share, workers: int | None) -> int:
    """Workers that fit on the cluster as it is.

    Args:
        nodes: Its living nodes.
        wants: What a worker asks for.
        workers: How many are asked for; None for as many as fit.

    Raises:
        InputError: Not so many fit, or none at all.
    """
    held = room(nodes, wants)
    fit = sum(held)
    if fit >= (workers or 1):
        return fit
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    needs = f"{wants.gpus:g} GPU" if wants.gpus else "1 core"
    among = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    have = f"{gpus:g} GPUs and {cpus:g} cores{among}"
    rule = f"{workers or 1} workers at {needs} each need more than the cluster's {have}"
    if wants.gpus * (workers or 1) <= gpus:
        # The sum would do; it is spread so that it does not.
        rule += f", which hold {', '.join(map(str, held))}"
    if fit:
        raise InputError.one(
            "workers", workers, rule, f"Use at most {fit} workers, or give each a smaller share of a GPU."
        )
    most = max((node.gpus if wants.gpus else node.cpus for node in nodes), default=0.0)
    what = "GPUs" if wants.gpus else "cores"
    step = f"The largest node has {most:g} {what}; give --gpus-per-trial no more, or add nodes."
    raise InputError.one("gpus_per_trial" if wants.gpus else "workers", wants.gpus or workers, rule, step)


def check_store(size: int, nodes: Sequence[Node], *, own: bool) -> None:
    """Refuse what the object stores cannot hold: Ray would write it to disk, and every worker would read it there.

    Args:
        size: Bytes of base and data.
        nodes: The nodes that will hold a copy.
        own: Whether the cluster was started here, by us.

    Raises:
        InputError: A store is too small; what to set.
    """
    small = [node for node in nodes if size > STORE_SHARE * node.store]
    if not small:
        return
    least = math.ceil(size / STORE_SHARE)
    where = f"{len(small)} of {len(nodes)} nodes have" if len(nodes) > 1 else "there is"
    rule = f"base and data take {format_bytes(size)}, and {where} room for {_stores(small)} of shared objects"
    if own:
        step = (
            "Give Ray a larger share of the memory than 0.3 with RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION, or start "
            f"it with `ray start --head --object-store-memory={least}` and name its --ray-address."
        )
        raise InputError.one("task.model", format_bytes(size), rule, step)
    step = f"Start every node with `ray start --object-store-memory={least}`, in a container with as large a /dev/shm."
    raise InputError.one("ray_address", format_bytes(size), rule, step)


def _stores(nodes: Sequence[Node]) -> str:
    return format_bytes(min(node.store for node in nodes))
