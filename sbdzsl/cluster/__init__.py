"""Everything that runs on Ray. The only package that imports it."""

import socket

#: Environment of a cluster whose Serve has HAProxy for its door and our event loop on its main thread. It has to be set
#: where each node is started, and before Ray is imported.
FAST_MODE = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def fast_mode_alone() -> dict[str, str]:
    """`FAST_MODE` for a cluster of this machine alone, beside which others may run."""
    stats_port, metrics_port = _two_free_ports()
    return FAST_MODE | {
        # By default two fixed ports, which the HAProxy of another service has, or of one that was killed.
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        # Half a minute by default, for balancers outside to learn that a node goes: here the door goes with it.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def _two_free_ports() -> tuple[int, int]:
    # Both are held before either is let go, so that they differ.
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])
