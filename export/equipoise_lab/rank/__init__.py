"""Active learning: which unlabelled images an expert should label first, and pseudo-labels."""
