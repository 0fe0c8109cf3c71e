"""A model's life in a hospital: published, proven fit, put into service, taken back.

    STORE/models/NAME/VERSION/     a release: NAME and its samplers, release.json, release.sig; never changed again
    STORE/generations/K/           links to the releases that are served together, and generation.json
    STORE/current                  the generation in service; one rename switches all of it
    STORE/log.jsonl                every decision, hash-chained (`equipoise audit verify`)

`equipoise serve STORE/current` copies the releases in service, verifies the copy, and lets Triton read only that.
"""
