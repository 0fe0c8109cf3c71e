"""The worklist: one page with the cases that the service was unsure of, where an expert gives a verdict on each."""
