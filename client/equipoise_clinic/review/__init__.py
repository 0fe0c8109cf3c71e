"""The worklist: one page on which an expert sees what the service was unsure of, and says what it is."""
