"""`equipoise dossier`: what is known of a model, as papers for the file: statements of fact, each with its source.

sources   what there is to read: published pair, store, audit log, gateway, hazards, bill of materials
papers    sources → model card, change control plan, record keeping, monitoring plan
page      papers → HTML
cases     audit log → pseudonymous cases, in a table as registries ask for
"""
