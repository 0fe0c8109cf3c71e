"""A network → a graph in which every stochastic operation is an `equipoise::Mask`."""
