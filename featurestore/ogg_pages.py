"""Ogg's stream serial number: libsndfile draws it from the clock, a seeded data set must not."""

import struct

HEADER_BYTES = 27
SERIAL_AT, CRC_AT = 14, 22
POLYNOMIAL = 0x04C11DB7


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (POLYNOMIAL if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_TABLE = _crc_table()


def page_crc(page: bytes) -> int:
    """Return the checksum of a page whose own checksum field is zero (RFC 3533, section 6)."""
    crc, table = 0, _TABLE
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ table[(crc >> 24) ^ byte]
    return crc


def with_serial_number(stream: bytes, serial: int) -> bytes:
    """Return an Ogg stream with another serial number in every page, checksums renewed."""
    pages, start = [], 0
    while start < len(stream):
        assert stream[start : start + 4] == b"OggS", f"no Ogg page at byte {start}"
        num_segments = stream[start + HEADER_BYTES - 1]
        table_end = start + HEADER_BYTES + num_segments
        end = table_end + sum(stream[start + HEADER_BYTES : table_end])
        page = bytearray(stream[start:end])
        struct.pack_into("<I", page, SERIAL_AT, serial)
        struct.pack_into("<I", page, CRC_AT, 0)
        struct.pack_into("<I", page, CRC_AT, page_crc(bytes(page)))
        pages.append(bytes(page))
        start = end
    return b"".join(pages)
