"""Training, comparing and ranking: the methods that Equipoise's reference models and figures come from."""
