"""JSON documents of a store: one spelling, replaced in one step, with their own checksum inside."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

# What reading damaged bytes may raise, in libraries that expect sound ones.
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RuntimeError, LookupError)


def canonical(document: dict[str, Any]) -> bytes:
    """Return the one spelling of a document: a changed byte anywhere can be told from it."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode()


def write_atomically(path: Path, data: bytes, scratch: Path) -> None:
    """Replace a file so that every reader sees the old or the new one, after a power cut too.

    scratch: a folder of the same file system for the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    temporary = scratch / "document"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the zarr.json of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def with_checksum(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return attributes with the sha256 of all the others."""
    others = {name: value for name, value in attributes.items() if name != "sha256"}
    return others | {"sha256": hashlib.sha256(canonical(others)).hexdigest()}


def read_group(path: Path) -> dict[str, Any]:
    """Return the attributes of a zarr.json that was written with its checksum.

    Raises:
        ValueError: a byte of it was changed.
    """
    data = path.read_bytes()
    try:
        attributes = json.loads(data)["attributes"]
        intact = data == canonical(group_document(with_checksum(attributes)))
    except (ValueError, TypeError, KeyError):
        intact = False
    if not intact:
        raise ValueError(f"{path} is damaged: it does not match its checksum.")
    return {name: value for name, value in attributes.items() if name != "sha256"}
