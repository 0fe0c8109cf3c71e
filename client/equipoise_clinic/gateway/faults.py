"""What may come of sending a result, other than that it has arrived."""

from __future__ import annotations

from equipoise_client.errors import EquipoiseError


class Away(EquipoiseError):
    """The destination does not answer, or denies access: that says nothing about the object."""


class Sick(Away):
    """The destination cannot store this object now. Whether the object is the reason shows when others arrive."""


class Refused(EquipoiseError):
    """The destination does not want this object. The message is a status, never what the destination wrote."""


class Unwanted(EquipoiseError):
    """The destination does not take objects of this kind, whatever is in them. The message as that of `Refused`."""
