"""Public layouts, splits and drawn data: everything that turns images on a disk into labelled samples."""
