"""Everything that runs on Ray. The only package that imports it."""

#: Environment of a cluster whose Serve has HAProxy for its door and our event loop on its main thread. It has to be set
#: where each node is started, and before Ray is imported.
FAST_MODE = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
