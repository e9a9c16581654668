"""Benchmarks that compare alternatives in one run: one script per claim, see docs/performance.md."""
