"""The cluster launcher's file for AWS, against Ray's own schema. Nothing is launched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from sbdzsl import __version__
from tests.infra.manifests import INFRA


@pytest.fixture
def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
    return found


def test_it_keeps_the_schema(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))


def test_a_typo_is_seen(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        jsonschema.validate(config | {"max_wokers": 2}, schema)


def test_only_workers_may_be_taken_back(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    head, spot = types[config["head_node_type"]], types["spot"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for one in types.values():
        assert one["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert one["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]


def test_it_is_closed_and_of_this_version(config: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert config["docker"]["image"].endswith(f":{__version__}-cpu")
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
