"""HTTP connections to archives, as a table of the configuration says."""

from __future__ import annotations

import requests

from .settings import Deliver, OrthancSource, WebSource, password


def session_of(settings: Deliver | OrthancSource | WebSource) -> requests.Session:
    """With its credentials, authority and certificate. Raises BadSettings."""
    session = requests.Session()
    if settings.user:
        session.auth = (settings.user, password(settings.password_file))
    if settings.tls_root is not None:
        session.verify = str(settings.tls_root)
    if settings.tls_cert is not None:
        session.cert = (str(settings.tls_cert), str(settings.tls_key or settings.tls_cert))
    return session
