"""Algorithms in one file each, which `algorithm = "examples.l1_proximal:L1Proximal"` names."""
