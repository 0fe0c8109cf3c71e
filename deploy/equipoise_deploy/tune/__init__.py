"""What serves a model fastest on this machine."""
