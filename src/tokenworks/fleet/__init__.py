"""Worker processes: the loop each runs, who spawns and restarts them, the link that carries messages."""
