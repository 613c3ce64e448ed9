"""Benchmarks a user can run; each prints ratios against a peer in the same run."""
