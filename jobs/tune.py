"""A sweep as a job: `ray job submit --working-dir . -- python jobs/tune.py --manifest M --out DIR --storage URL`.

Takes the arguments of `sbdzsl tune`. Images must be readable on every node; the study is kept where this command runs,
or in a database. `sbdzsl tune --submit http://head:8265 ...` does the same where sbdzsl is installed on the nodes, and
ends with the job's own exit code.
"""

import sys

from sbdzsl.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
