"""Two-stage inspection of industrial surfaces: SBAD names the surface or says unseen, SBDD finds its defects."""

__version__ = "0.1.0"
