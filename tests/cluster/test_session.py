"""How actors are sized by the nodes there are; no Ray is started."""

import pytest
import ray

from sbdzsl.cluster.session import Crew, session, size_crew
from sbdzsl.config import AuditSettings
from sbdzsl.errors import AuditError, ConfigError

CPU_NODES = [{"CPU": 8.0}, {"CPU": 3.0}]
GPU_NODES = [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}]


def test_an_actor_a_cpu() -> None:
    assert size_crew(AuditSettings(), "torch", CPU_NODES, 100) == Crew(11, 1.0, 0.0)


def test_no_more_actors_than_shards_or_than_asked_for() -> None:
    assert size_crew(AuditSettings(), "torch", CPU_NODES, 5).num_actors == 5
    assert size_crew(AuditSettings(actors=3), "torch", CPU_NODES, 5).num_actors == 3


def test_an_actor_lies_on_one_node() -> None:
    assert size_crew(AuditSettings(cpus_per_actor=2), "torch", CPU_NODES, 100).num_actors == 5
    with pytest.raises(AuditError, match=r"needs \{'CPU': 9.0\} on one node; the largest node offers \{'CPU': 8.0\}"):
        size_crew(AuditSettings(cpus_per_actor=9), "torch", CPU_NODES, 100)


def test_gpus_are_used_where_there_are_any_with_their_share_of_cpus_to_decode() -> None:
    found = size_crew(AuditSettings(), "torch", GPU_NODES, 100)
    assert found == Crew(2, 8.0, 1.0)
    assert (found.device, found.threads) == ("cuda", 8)
    assert size_crew(AuditSettings(gpus_per_actor=0.5), "torch", GPU_NODES, 100) == Crew(4, 4.0, 0.5)


def test_gpus_are_left_alone_where_the_runtime_does_not_use_them() -> None:
    assert size_crew(AuditSettings(), "openvino", GPU_NODES, 100) == Crew(20, 1.0, 0.0)
    assert size_crew(AuditSettings(gpus_per_actor=0), "torch", GPU_NODES, 100).device == "cpu"
    with pytest.raises(ConfigError, match="runtime openvino runs on the CPU"):
        size_crew(AuditSettings(gpus_per_actor=1), "openvino", GPU_NODES, 100)
    with pytest.raises(AuditError, match="largest node"):
        size_crew(AuditSettings(gpus_per_actor=1), "torch", CPU_NODES, 100)


def test_a_machine_too_busy_to_start_ray_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: Exception = Exception("The current node timed out during startup.")

    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(AuditError, match="Ray did not start on this machine: The current node timed out"), session():
        pass
    raised = AssertionError("a mistake of ours")
    with pytest.raises(AssertionError, match="a mistake of ours"), session():
        pass
