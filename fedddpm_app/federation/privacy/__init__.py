"""Privacy on the server: what private runs refuse, and what they spend."""
