"""From a manifest to a bundle in force: train, evaluate, gate, promote, report, each step once.

    settings    what a run is asked for
    journal     its folder, where each step leaves a record of what went in and what came out
    steps       the steps, and what goes from one to the next

What trains is handed in, so that nothing here knows of a cluster: see `cluster.pipeline`.
"""

from sbdzsl.pipeline.settings import PipelineSettings

__all__ = ["PipelineSettings"]
