"""A second copy of everything in a store that cannot be computed again from the audio.

A tar of the small files (metadata documents and tables), followed by its sha256. Deterministic:
no times, no owners, sorted names.
"""

import hashlib
import io
import tarfile
from pathlib import PurePosixPath

DIGEST_BYTES = 32


def pack(files: dict[str, bytes]) -> bytes:
    """Return the copy of the given files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    blob = buffer.getvalue()
    return blob + hashlib.sha256(blob).digest()


def is_inside(name: str) -> bool:
    """Tell whether a file's name, as found in a store, stays in the store."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def unpack(blob: bytes) -> dict[str, bytes]:
    """Return the files of a copy.

    Raises:
        ValueError: the copy is damaged.
    """
    tar_bytes, digest = blob[:-DIGEST_BYTES], blob[-DIGEST_BYTES:]
    if hashlib.sha256(tar_bytes).digest() != digest:
        raise ValueError("the recovery copy does not match its checksum")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        for entry in tar:
            if not is_inside(entry.name):
                raise ValueError(f"the recovery copy names a file outside the store: {entry.name}")
            file = tar.extractfile(entry)
            assert file is not None
            files[entry.name] = file.read()
    return files
