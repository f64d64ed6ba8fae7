"""KubeRay's manifests, by the schemas of its custom resources; the plain ones, by what they have to say to each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import pytest

from tests.cluster.files import MANIFESTS, ROOT, commands, load, manifest

SCHEMAS = ROOT.parent / "shared" / "schemas"
DASHBOARDS = {"tensorboard.yaml": 6006, "optuna-dashboard.yaml": 8080}


def closed(schema: Any) -> Any:
    """The schema, with every object that lists its fields refusing others, as the API server does for `kubectl apply`."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        shut["additionalProperties"] = False
    return shut


@cache
def schema_of(kind: str) -> Any:
    path = SCHEMAS / f"kuberay-{kind}s.crd.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's schemas are not beside the repository: {path.name}")
    (version,) = (version for version in load(path)["spec"]["versions"] if version["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def pods(name: str) -> Iterator[dict[str, Any]]:
    """The pods that a manifest describes, without those of its storage."""
    spec = manifest(name).get("spec", {})
    cluster = spec.get("rayClusterSpec", spec)
    if "headGroupSpec" in cluster:
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]
    elif "template" in spec:
        yield spec["template"]["spec"]


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_kuberay_takes_it_and_no_other_field(kind: str) -> None:
    schema, document = jsonschema.Draft7Validator(schema_of(kind)), manifest(f"{kind}.yaml")
    schema.validate(document)
    for path, field in (((), "autoscaling"), (("headGroupSpec", "template", "spec", "containers", 0), "volumeMount")):
        wrong = copy.deepcopy(document)
        place = wrong["spec"].get("rayClusterSpec", wrong["spec"])
        for step in path:
            place = place[step]
        place[field] = []
        with pytest.raises(jsonschema.ValidationError, match=field):
            schema.validate(wrong)


def test_kubernetes_takes_the_pods_and_the_claim() -> None:
    """Its own schemas of them are within KubeRay's."""
    cluster = schema_of("raycluster")["properties"]["spec"]["properties"]
    pod = cluster["headGroupSpec"]["properties"]["template"]["properties"]["spec"]
    ephemeral = pod["properties"]["volumes"]["items"]["properties"]["ephemeral"]
    for name in DASHBOARDS:
        assert manifest(name)["apiVersion"] == "apps/v1"
        jsonschema.Draft7Validator(pod).validate(manifest(name)["spec"]["template"]["spec"])
    claim = ephemeral["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    jsonschema.Draft7Validator(claim).validate(manifest("storage.yaml")["spec"])
    with pytest.raises(jsonschema.ValidationError, match="accessMode"):
        jsonschema.Draft7Validator(claim).validate({"accessMode": ["ReadWriteMany"]})


def test_the_job_runs_on_a_cluster_like_the_one_that_stays() -> None:
    assert manifest("rayjob.yaml")["spec"]["rayClusterSpec"] == manifest("raycluster.yaml")["spec"]


def test_the_cluster_asks_for_the_token_and_scales_gpus_from_none() -> None:
    spec = manifest("raycluster.yaml")["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "emoreg-token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = spec["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == 0 < workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_mount_what_is_there_and_have_no_more_rights_than_they_need(name: str) -> None:
    claim = manifest("storage.yaml")["metadata"]["name"]
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        claims = [
            volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume
        ]
        assert set(claims) <= {claim}
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert {mount["name"] for mount in container.get("volumeMounts", ())} == volumes.keys()


@pytest.mark.parametrize("name", MANIFESTS)
def test_secrets_are_made_by_commands_of_the_readme(name: str) -> None:
    made = {
        (words[words.index("generic") + 1], words[-1].removeprefix("--from-file=").partition("=")[0])
        for words in (line.split() for line in (*commands("kubectl"), *commands("read")))
        if "secret" in words
    }
    assert len(made) == 2
    for pod in pods(name):
        for variable in (variable for container in pod["containers"] for variable in container.get("env", ())):
            assert "value" not in variable, "only secrets are in the environment, and those by name"
            secret = variable["valueFrom"]["secretKeyRef"]
            assert (secret["name"], secret["key"]) in made
    assert ("emoreg-token", "auth_token") in made, "what authOptions names, under the key that KubeRay reads"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards_listen_to_their_own_pod(name: str) -> None:
    spec, port = manifest(name)["spec"], DASHBOARDS[name]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    ((container,),) = (pod["containers"] for pod in pods(name))
    assert {"--host=127.0.0.1", f"--port={port}"} <= set(container["command"])
    assert f"kubectl port-forward deployment/{manifest(name)['metadata']['name']} {port}" in commands("kubectl")


def test_nothing_is_offered_to_the_network_of_the_cluster() -> None:
    assert {manifest(name)["kind"] for name in MANIFESTS} == {"RayCluster", "RayJob", "Deployment", "PersistentVolumeClaim"}
