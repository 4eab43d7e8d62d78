"""The manifest in docs/ is well-formed, says only what KubeRay's API knows, and uses flags that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autopeft.cli.flags import parse_flags
from autopeft.cli.parser import parse
from autopeft.executors.room import STORE_SHARE
from autopeft.spec.amounts import parse_bytes

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "kuberay.yaml"

# The members of KubeRay's types of API version ray.io/v1, as their Go sources tag them.
RAY_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
AUTOSCALER = {
    "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext",
    "upscalingMode", "version", "volumeMounts",
}  # fmt: skip
HEAD = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKERS = {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas",
    "scaleStrategy", "suspend", "template",
}  # fmt: skip


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(FILE.read_text())}


@pytest.fixture(scope="module")
def cluster(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    assert documents["RayCluster"]["apiVersion"] == "ray.io/v1"
    return documents["RayCluster"]["spec"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def script(documents: dict[str, dict[str, Any]]) -> str:
    return str(_container(documents["Job"]["spec"]["template"])["args"][0])


def _container(template: dict[str, Any]) -> dict[str, Any]:
    return template["spec"]["containers"][0]  # type: ignore[no-any-return]


def _templates(documents: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    spec = documents["RayCluster"]["spec"]
    yield spec["headGroupSpec"]["template"]
    yield spec["workerGroupSpecs"][0]["template"]
    yield documents["Job"]["spec"]["template"]


def test_only_members_that_the_operator_knows(cluster: dict[str, Any]) -> None:
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert set(cluster["headGroupSpec"]) <= HEAD
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    # The operator takes text alone.
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())


def test_ray_is_the_version_that_is_tested(cluster: dict[str, Any]) -> None:
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_flags_of_ray_exist(cluster: dict[str, Any], script: str) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert {f"--{name}" for group in groups for name in group["rayStartParams"]} <= known
    line = next(line for line in script.splitlines() if line.startswith("ray start"))
    assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_the_search_is_one_that_autopeft_takes(cluster: dict[str, Any], script: str) -> None:
    line = script.replace("\\\n", " ").split("exec autopeft ", 1)[1].strip().removesuffix("$resume")
    spec = parse_flags(parse(shlex.split(line)))
    assert spec.ray_address == "auto"
    (group,) = cluster["workerGroupSpecs"]
    gpus = int(_container(group["template"])["resources"]["requests"]["nvidia.com/gpu"])
    assert spec.gpus_per_trial is not None
    assert spec.max_workers == group["maxReplicas"] * gpus / spec.gpus_per_trial
    assert f"if [ -e {spec.out}/journal.jsonl ]" in script
    assert "--resume" in script
    assert parse(shlex.split(f"{line} --resume")).resume


def test_nothing_runs_as_root_or_writes_its_image(documents: dict[str, dict[str, Any]]) -> None:
    for template in _templates(documents):
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        context = _container(template)["securityContext"]
        assert context["runAsNonRoot"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"/tmp", "/dev/shm"} <= {mount["mountPath"] for mount in _container(template)["volumeMounts"]}
        mounted = {mount["name"] for mount in _container(template)["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
        names = {variable["name"] for variable in _container(template)["env"]}
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= names


def test_workers_and_search_share_the_runs_and_stores_fit_into_memory(
    documents: dict[str, dict[str, Any]], script: str
) -> None:
    claim = documents["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    _, workers, search = list(_templates(documents))
    group = documents["RayCluster"]["spec"]["workerGroupSpecs"][0]
    started = re.search(r"--object-store-memory (\d+)", script)
    assert started is not None
    for template, store in ((workers, group["rayStartParams"]["object-store-memory"]), (search, started[1])):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        shm = parse_bytes(f"{volumes['shm']['emptyDir']['sizeLimit']}B")
        memory = parse_bytes(f"{_container(template)['resources']['limits']['memory']}B")
        assert int(store) < shm < memory
        # A driver holds the base once in its own memory and once in the store.
        assert memory - shm > STORE_SHARE * int(store)
