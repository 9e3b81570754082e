"""What the engine does on one GPU, beside what it should reach; `make bench-gpu`, docs/benchmarks.md."""
