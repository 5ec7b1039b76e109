"""The pipeline as a job: `ray job submit --working-dir . -- python jobs/pipeline.py --manifest M --out URL`.

Takes the arguments of `sbdzsl pipeline`, and trains on the cluster. Paths must be readable on every node, and the run's
folder writable: a folder that git ignores does not travel. `sbdzsl pipeline --submit http://head:8265 ...` does the
same where sbdzsl is installed on the nodes, and ends with the job's own exit code.
"""

import sys

from sbdzsl.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", "--cluster", *sys.argv[1:]]))
