"""Edges between clients and cloud: how homogeneous their data are, and what follows from it; numpy alone."""
