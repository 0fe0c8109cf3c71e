"""Talk to an Equipoise server."""

__version__ = "0.1.0"
