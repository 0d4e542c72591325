"""Worker processes: a supervisor starts, watches, restarts and stops them."""
