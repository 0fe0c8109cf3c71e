"""Everything a machine without a network needs, in one archive that is verified as a whole.

    manifest.json        SHA-256 and size of every other entry; what it was made for
    manifest.sig         signature over manifest.json by the model-signing library, where a key was given
    deploy/…             chart, proxy, units, rules and dashboards
    images.json          container images that the deployment names
    images/              those of them that `make --image` was given, as OCI archives
    models/… or store/…  what is served: a plain model repository, or releases with their own signatures
    sbom.cdx.json        CycloneDX bill of materials: every package and every model with digests
    wheels/…             every Python package, our own included, for one platform

The archive is a plain tar. Entries are sorted; times, owners and modes are fixed: the same content is the same file.
The manifest decides what is taken out of it: each entry is listed there once, with its name, size and SHA-256, and
nothing else is unpacked. So one changed bit in anything that is installed is found. Bits that nobody reads are not
checked: the padding of the tar between entries and after the last one.
"""
