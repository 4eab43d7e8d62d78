"""A Ray cluster as the executors see it: reaching it, its nodes, and what its workers would compute on."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayError

from autopeft.errors import InputError
from autopeft.executors.base import cores
from autopeft.executors.room import Node, check_fraction, check_room, share

if TYPE_CHECKING:
    from autopeft.compose.base import DType

LOOK_SECONDS, NODE_SECONDS = 120.0, 600.0
"""How long a node may take to start a process and import torch, and a cluster that scales to start a node."""


def own_token() -> None:
    """Make Ray's login token readable by this user alone: Ray itself writes it world-readable into the home folder.

    A token that is there is kept: a process that has used Ray before remembers it.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start one on this machine without a dashboard.

    Raises:
        InputError: The cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # It warns that another thread than the first sets no signal handlers: ours are in place.
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if address is None:
        own_token()
        # Another cluster of this machine is not ours to use.
        ray.init(address="local", num_cpus=cores(), include_dashboard=False, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (ConnectionError, RayError, OSError, ValueError, RuntimeError) as error:
        raise InputError.one(
            "ray_address",
            address,
            f"no Ray cluster answers there ({error})",
            "Start one with `ray start --head`, or leave the option out to run on this machine.",
        ) from error


def _knock(address: str) -> None:
    """Fail at once where nothing listens: Ray itself tries for minutes and then ends the process."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return  # "auto" and "local" name no port.
    with socket.create_connection((host, int(port)), timeout=5.0):
        pass


def nodes() -> list[Node]:
    """The living nodes."""
    return [
        Node(
            id=str(node["NodeID"]),
            cpus=float(node["Resources"].get("CPU", 0.0)),
            gpus=float(node["Resources"].get("GPU", 0.0)),
            store=int(node["Resources"].get("object_store_memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def packed_bytes(value: Any) -> int:
    """Bytes that a value takes in an object store; its arrays are counted, not copied."""
    arrays: list[int] = []

    def count(buffer: Any) -> bool:
        arrays.append(buffer.raw().nbytes)
        return False

    return len(ray.cloudpickle.dumps(value, protocol=5, buffer_callback=count)) + sum(arrays)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a process on the cluster finds on the GPU that it is given.

    Attributes:
        gpu: Whether torch computes on it.
        bfloat16: Whether it computes in bfloat16.
        declared: GPUs that the cluster declares, where workers are to have any.
    """

    gpu: bool
    bfloat16: bool
    declared: float

    @property
    def precision(self) -> DType | None:
        """The dtype of the frozen base on that GPU; None without one."""
        return None if not self.gpu else "bfloat16" if self.bfloat16 else "float32"

    @property
    def note(self) -> str | None:
        """What the user should know; None where all is as it seems."""
        if self.gpu or not self.declared:
            return None
        return (
            f"The cluster declares {self.declared:g} GPUs, and torch computes on none of them: trials run on cores. "
            "Install a torch that knows these GPUs on every node, or declare none."
        )


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Connected, for a look."""
    owns = not ray.is_initialized()
    connect(address)
    try:
        yield
    finally:
        if owns:
            ray.shutdown()


def _see() -> tuple[bool, bool]:
    import torch

    gpu = torch.cuda.is_available()
    return gpu, gpu and torch.cuda.is_bf16_supported()


def look(
    address: str, gpus_per_trial: float | None, workers: int | None = None, max_workers: int | None = None
) -> Seen:
    """What workers of a cluster would compute on: the machine that asks may have no GPU where they have, or reverse.

    Args:
        address: The cluster.
        gpus_per_trial: As for the executor.
        workers: As for the executor.
        max_workers: As for the executor.

    Raises:
        InputError: The cluster cannot be reached, has no room for the workers, or starts no process beside a GPU.
    """
    with _joined(address):
        have = nodes()
        declared = sum(node.gpus for node in have)
        wanted = gpus_per_trial if gpus_per_trial is not None else min(1.0, declared)
        check_fraction(wanted)
        if max_workers is None:
            check_room(have, share(have, wanted), workers)
        if wanted == 0:
            return Seen(False, False, 0.0)
        patience = LOOK_SECONDS if declared else NODE_SECONDS
        task = ray.remote(_see).options(num_cpus=0, num_gpus=min(1.0, wanted), max_retries=1)
        try:
            gpu, bfloat16 = cast("tuple[bool, bool]", ray.get(task.remote(), timeout=patience))
        except (GetTimeoutError, RayError) as error:
            what = "no GPU became free" if isinstance(error, GetTimeoutError) else str(error).strip().splitlines()[-1]
            raise InputError.one(
                "ray_address",
                address,
                f"no process could start beside a GPU there within {patience:.0f} s ({what})",
                "Free a GPU, install autopeft and torch on every node, or give --gpus-per-trial 0.",
            ) from error
        return Seen(gpu, bfloat16, declared)
