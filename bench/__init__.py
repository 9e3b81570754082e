"""Measurements of the project against references written plainly beside them; `make bench`, docs/benchmarks.md."""
