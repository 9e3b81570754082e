"""Benchmarks of the project against plainly written references; `make bench`, docs/benchmarks.md."""
