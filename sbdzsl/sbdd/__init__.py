"""SBDD, stage two: one segmentation-and-decision network per surface."""
