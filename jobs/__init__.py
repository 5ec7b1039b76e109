"""Entry points for `ray job submit`: each parses, calls one function, returns its exit code."""
