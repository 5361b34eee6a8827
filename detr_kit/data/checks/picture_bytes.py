"""What the bytes of a picture file tell: whether it ends early, the depth of a PNG, the digest."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# Pillow holds other chunks of a PNG than its pixels as a whole.
MAX_PNG_CHUNK = 2**26
_BLOCK = 2**20
_TAIL = 4096

_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that a file may have without end; Pillow is asked what it makes of more.
_MAX_CHUNKS = 2**17
_METADATA_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
# Bytes a value by the type of a TIFF's tag; of one byte where not listed.
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


@dataclass(frozen=True)
class FileBytes:
    """What the bytes of a file tell before Pillow sees them."""

    num_bytes: int
    ends_early: bool
    png_depth: int
    png_metadata_after_pixels: bool
    too_large: str | None
    digest: bytes


def read_ends(file: BinaryIO, num_bytes: int) -> FileBytes:
    """Read a file from both ends, and whole for its digest; nothing is decoded."""
    head = file.read(32)
    file.seek(max(0, num_bytes - _TAIL))
    ends_early = _ends_early(file, head, file.read(_TAIL), num_bytes)
    depth, metadata_after_pixels, too_large = 8, False, None
    if head.startswith(_PNG) and len(head) > 24:
        depth = head[24]
        pixels_seen = False
        for count, (kind, length) in enumerate(_png_chunks(file)):
            pixels_seen |= kind == b"IDAT"
            metadata_after_pixels |= count > _MAX_CHUNKS
            metadata_after_pixels |= pixels_seen and kind in _METADATA_CHUNKS
            # A damaged length says nothing about what is there to be read.
            length = min(length, num_bytes - file.tell())
            if length > MAX_PNG_CHUNK and kind not in (b"IDAT", b"fdAT"):
                too_large = f"too large: a chunk {kind.decode('latin-1')!r} of {length} bytes"
    file.seek(0)
    return FileBytes(num_bytes, ends_early, depth, metadata_after_pixels, too_large, _digest(file))


def _digest(file: BinaryIO) -> bytes:
    hashed = hashlib.blake2b(digest_size=16)
    while block := file.read(_BLOCK):
        hashed.update(block)
    return hashed.digest()


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the type and length of the chunks, up to the end, or one more than too many."""
    file.seek(len(_PNG))
    for _ in range(_MAX_CHUNKS + 2):
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            return
        length = int.from_bytes(start[:4], "big")
        yield start[4:], length
        file.seek(length + 4, os.SEEK_CUR)


def _ends_early(file: BinaryIO, head: bytes, tail: bytes, num_bytes: int) -> bool:
    """Whether a file of a known format seems to lack its end.

    It need not: bytes may follow the end, and some decoders do without. Decoding tells.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in tail
    if head.startswith(_PNG):
        return b"IEND" not in tail
    if head.startswith((b"GIF87a", b"GIF89a")):
        return not tail.rstrip(b"\0").endswith(b";")
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 > num_bytes
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") > num_bytes
    if head.startswith((b"II*\0", b"MM\0*")):
        return _tiff_directory_ends_early(file, head, num_bytes)
    if head[4:8] in (b"ftyp", b"jP  "):
        return _boxes_end_early(file, num_bytes)
    return False


def _tiff_directory_ends_early(file: BinaryIO, head: bytes, num_bytes: int) -> bool:
    """Whether the first directory of a TIFF, or a value that it points to, passes the end."""
    order = "<" if head.startswith(b"II") else ">"
    (start,) = struct.unpack(f"{order}I", head[4:8].ljust(4, b"\xff"))
    file.seek(start)
    (count,) = struct.unpack(f"{order}H", file.read(2).ljust(2, b"\xff"))
    entries = file.read(12 * count)
    if start + 2 + 12 * count + 4 > num_bytes:
        return True
    for _, kind, length, place in struct.iter_unpack(f"{order}HHII", entries):
        size = _TIFF_BYTES.get(kind, 1) * length
        if size > 4 and place + size > num_bytes:
            return True
    return False


def _boxes_end_early(file: BinaryIO, num_bytes: int) -> bool:
    """Whether a box of an AVIF or JPEG 2000 file passes the end, or has no plain length."""
    position = 0
    for _ in range(_MAX_CHUNKS):
        if position >= num_bytes:
            break
        file.seek(position)
        length = int.from_bytes(file.read(4), "big")
        if length < 8:
            return True
        position += length
    return position != num_bytes
