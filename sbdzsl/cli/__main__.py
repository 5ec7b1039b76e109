"""`python -m sbdzsl.cli` is `sbdzsl`."""

import sys

from sbdzsl.cli import main

sys.exit(main())
