"""Benchmarks, each a module of its own: `python -m bench.peers`, and `--help` for its options. `make bench` runs all."""
