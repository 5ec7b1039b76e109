"""Online inspection: an HTTP application over any `Service` that judges images. Knows nothing of Ray."""
