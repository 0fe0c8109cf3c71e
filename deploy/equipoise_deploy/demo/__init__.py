"""`equipoise demo`: the three reference models on real images that come with registry packages."""
