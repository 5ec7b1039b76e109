"""Everything that runs on Ray. The only package that imports it."""

import socket

#: Environment of a cluster whose Serve has HAProxy for its door and our event loop on its main thread. It has to be set
#: where each node is started, and before Ray is imported.
FAST_MODE = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def fast_mode_alone() -> dict[str, str]:
    """`FAST_MODE` for a cluster of this machine alone, beside which others may run."""
    return FAST_MODE | {
        # By default two fixed ports, which the HAProxy of another service has, or of one that was killed.
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        # Half a minute by default, for balancers outside to learn that a node goes: here the door goes with it.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
