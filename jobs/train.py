"""Training as a job: `ray job submit --working-dir . -- python jobs/train.py --manifest M --bundle URL`.

Takes the arguments of `sbdzsl train`, and trains on the cluster. Paths must be readable on every node, and the bundle's
writable: a folder that git ignores does not travel. `sbdzsl train --submit http://head:8265 ...` does the same where
sbdzsl is installed on the nodes, and ends with the job's own exit code.
"""

import sys

from sbdzsl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "--cluster", *sys.argv[1:]]))
