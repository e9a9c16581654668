"""The rounds: their loop, and the ways in which a round's clients train."""
