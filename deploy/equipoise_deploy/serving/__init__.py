"""A Triton of our own: found, started, watched, restarted, stopped without a trace."""
