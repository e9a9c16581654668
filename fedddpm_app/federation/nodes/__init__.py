"""The nodes of a run: who is connected, and which partition each one holds."""
