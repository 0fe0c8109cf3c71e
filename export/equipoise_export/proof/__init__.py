"""The proof that sampler and network are the same function. It imports neither capture nor passes, only `graph`."""
