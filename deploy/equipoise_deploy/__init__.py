"""Runs the published models: finds Triton, starts it, knows when it is ready, stops it without a trace."""
