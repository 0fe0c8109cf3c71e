"""DICOM studies in, results out: a service that loses nothing, sends nothing twice, and waits when others are away.

    receivers ─▶ intake ─▶ Spool + Store ─▶ AnalysisWorker: select, ask Triton, make objects
                              ▲                └─▶ audit log ─▶ DeliveryWorker: STOW-RS or C-STORE
                              └ every step: files first (temporary, fsync, rename), then one transaction

A step that was interrupted is done again; because objects have deterministic UIDs, done twice is done once.
"""
