"""`equipoise doctor`: is this machine fit to go live, and is the server that runs on it well?

Each check is a function of the `Subject` that yields results; `checks` lists them.
"""
