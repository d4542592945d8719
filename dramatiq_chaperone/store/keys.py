"""Keys of new rows."""

from __future__ import annotations

import uuid


def new_key(key_type: str) -> str | None:
    """A key of this type; None where the database counts."""
    if key_type == "id":
        return None
    if key_type == "uuid":
        return str(uuid.uuid4())
    from ulid import ULID

    return str(ULID())
