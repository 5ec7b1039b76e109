"""Online inspection: what stands around the inspector when images come one by one and verdicts are needed at once."""
