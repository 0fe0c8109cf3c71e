"""DICOM studies in, standard results out: the gateway, the worklist and the audit log."""
