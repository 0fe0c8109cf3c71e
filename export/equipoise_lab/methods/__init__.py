"""Ways to be unsure beside Monte Carlo dropout over the reference networks: `catalogue.py` is the list."""
