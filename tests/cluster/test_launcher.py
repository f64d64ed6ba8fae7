"""The files of Ray's cluster launcher, by Ray's own code and the clouds' own models of their calls; no cloud is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import botocore.session
import jsonschema
import pytest
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.files import CLUSTER, LAUNCHED, launched


def check_call(operation: str, **parameters: Any) -> None:
    """Hold the parameters of a call to EC2 to the model that botocore checks them by."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model(operation).input_shape
    report = ParamValidator().validate(parameters, shape)
    assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_it(name: str) -> None:
    prepared = prepare_config(launched(name))
    validate_config(prepared)
    for commands in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[commands] == [], "the image has what a node needs, and Ray's defaults would install another Ray"


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_refuses_a_field_that_it_does_not_know(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(launched(name) | {"idle_timeout_minute": 5}))


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_start_with_the_token_and_the_dashboard_on_loopback(name: str) -> None:
    config = launched(name)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    (head,) = (command for command in config["head_start_ray_commands"] if "start" in command)
    (worker,) = (command for command in config["worker_start_ray_commands"] if "start" in command)
    for command in (head, worker):
        assert command.startswith("RAY_AUTH_MODE=token ray start ")
    assert "--dashboard-host=127.0.0.1 " in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--address=$RAY_HEAD_IP:6379 " in worker
    assert "--force" not in (CLUSTER / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_clouds_keep_a_cpu_head_and_begin_without_gpus(name: str) -> None:
    config = prepare_config(launched(name))
    assert config["idle_timeout_minutes"] == 10
    head, workers = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert (workers["min_workers"], workers["max_workers"]) == (0, config["max_workers"])
    assert workers["resources"]["GPU"] == 1


def test_ec2_takes_the_nodes() -> None:
    config = launched("aws")
    head, workers = (config["available_node_types"][node]["node_config"] for node in ("head", "gpu"))
    for node in (head, workers):
        check_call("RunInstances", MinCount=1, MaxCount=1, **node)
    assert workers["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head
    with pytest.raises(AssertionError, match="InstanceTyp"):
        check_call("RunInstances", MinCount=1, MaxCount=1, InstanceTyp="g5.xlarge")


@pytest.mark.slow
def test_ray_starts_its_nodes_on_ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own launcher against an EC2 that moto plays in this process."""
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps the ssh key that it makes in ~/.ssh
    (tmp_path / ".ssh").mkdir()
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-west-2")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws  # both keep clients that they make when first used
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        ec2 = boto3.client("ec2")
        boto3.client("iam").create_instance_profile(InstanceProfileName="emoreg")
        group = ec2.create_security_group(GroupName="emoreg", Description="of the nodes")["GroupId"]
        config = prepare_config(launched("aws"))
        for node_type in config["available_node_types"].values():
            node_type["node_config"]["SecurityGroupIds"] = [group]
        config = bootstrap_aws(config)
        types = config["available_node_types"]
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, lifecycle in (("head", None), ("gpu", "spot")):
            (instance,) = provider.create_node(types[name]["node_config"], {}, 1).values()
            assert instance.instance_lifecycle == lifecycle
            assert [member["GroupId"] for member in instance.security_groups] == [group]
            assert instance.iam_instance_profile["Arn"].endswith("/emoreg")
        open_to_all = [
            rule
            for made in ec2.describe_security_groups()["SecurityGroups"]
            for rule in made["IpPermissions"]
            if {"CidrIp": "0.0.0.0/0"} in rule["IpRanges"]
        ]
        assert open_to_all == []


def test_gcp_workers_are_spot_and_leave_nothing() -> None:
    config = launched("gcp")
    scheduling = config["available_node_types"]["gpu"]["node_config"]["scheduling"]
    assert (scheduling["provisioningModel"], scheduling["instanceTerminationAction"]) == ("SPOT", "DELETE")
    assert scheduling["onHostMaintenance"] == "TERMINATE", "what a machine with a GPU has to say"
