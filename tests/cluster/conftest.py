"""One local Ray for the tests of a module, gone before the others of this process start."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Two CPUs and a small object store, on this machine alone.

    Its agent takes any free port: at the usual one it would meet that of another Ray, and wait for it.
    """
    head = {"num_cpus": 2, "include_dashboard": False, "dashboard_agent_listen_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 80 * 2**20})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()
    cluster.shutdown()
