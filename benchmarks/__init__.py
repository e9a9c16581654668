"""What is measured, side by side: one script per claim, see docs/performance.md."""
