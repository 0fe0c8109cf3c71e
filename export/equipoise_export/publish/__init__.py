"""A proven sampler → the Triton models that serve it."""
