"""The reference models: their data, networks, training and measurement."""
