"""Files and folders that survive the failure of a process: written whole, or owned by a lock."""
