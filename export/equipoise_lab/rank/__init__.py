"""Active learning: which unlabelled images an expert should label first, and labels that the model may suggest."""
