"""Messages to clients and their replies: sending, decoding, checks and time limits."""
