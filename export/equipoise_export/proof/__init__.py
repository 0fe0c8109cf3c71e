"""The proof that sampler and network are the same function. It shares no code with capture and passes."""
