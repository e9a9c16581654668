"""Comparison of algorithms at matched cost: a grid of rows, conditions and seeds, its runs, and its results."""
