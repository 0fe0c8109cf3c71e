"""DICOM series in, standard result objects out; only pixels and geometry ever go to the server."""
