"""Everything that runs on Ray. The only package that imports it."""
