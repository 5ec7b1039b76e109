"""Bulk audit as a job: `ray job submit --working-dir . -- python jobs/audit.py --bundle B --lake URL --out URL`.

Takes the arguments of `sbdzsl audit`. Paths must be readable on every node: a folder that git ignores does not travel.
`sbdzsl audit --submit http://head:8265 ...` does the same where sbdzsl is installed on the nodes, and ends with the
job's own exit code.
"""

import sys

from sbdzsl.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
