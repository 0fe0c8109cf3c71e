"""Whose the files of the service are that an administrator makes."""

from __future__ import annotations

import os
from pathlib import Path


def give_to_owner(descriptor: int, like: Path) -> None:
    """What root writes is of whoever owns `like`, or its folder where it is not there: the service goes on with it."""
    if os.geteuid() == 0:
        owner = (like if like.exists() else like.parent).stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
