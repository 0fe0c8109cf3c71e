"""Uncertainty methods besides Monte Carlo dropout of the reference networks: `catalogue.py` lists them."""
