"""Content-Encoding of requests: all of a body is read, or it is refused."""

from __future__ import annotations

import zlib

from serving.errors import BadRequest, TooLarge, Unsupported

_GZIP = (b"gzip", b"x-gzip")
_SLICE = 4096
"""What is left over when a member ends is copied, so a body of many members is read in small pieces."""
_MOST_MEMBERS = 20_000


def decompressed(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Undo Content-Encoding gzip or deflate. TooLarge when it grows above the limit; BadRequest when the data
    ends too early, or something follows that is not read."""
    kind = encoding.strip().lower()
    if kind in (b"", b"identity"):
        return body
    if kind in _GZIP:
        return _gunzipped(body, limit)
    if kind != b"deflate":
        raise Unsupported(
            "Content-Encoding may be gzip, deflate or identity",
            headers=((b"accept-encoding", b"gzip, deflate"),),
        )
    # Some clients send raw deflate.
    reader = zlib.decompressobj(-15 if body and (body[0] & 0x0F) != 8 else 15)
    try:
        plain = reader.decompress(body, limit + 1)
    except zlib.error:
        raise BadRequest("the body is not deflate") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not reader.eof:
        raise BadRequest("the body's deflate data is truncated")
    if reader.unused_data:
        raise BadRequest(f"{len(reader.unused_data)} bytes follow the body's deflate data")
    return plain


def _gunzipped(body: bytes, limit: int) -> bytes:
    """Of all members: `cat a.gz b.gz` is one file, and so is what pigz and log shippers write."""
    parts: list[bytes] = []
    size = position = members = 0
    view = memoryview(body)
    while position < len(body) or not members:
        if members and not any(view[position : position + _SLICE]) and not body[position:].strip(b"\0"):
            break  # padding, which gunzip ignores too
        if members == _MOST_MEMBERS:
            raise TooLarge(f"the body may have at most {_MOST_MEMBERS} gzip members")
        members += 1
        reader = zlib.decompressobj(31)
        while not reader.eof:
            piece = view[position : position + _SLICE]
            if not piece:
                raise BadRequest("the body's gzip data is truncated")
            try:
                plain = reader.decompress(piece, limit + 1 - size)
            except zlib.error:
                what = f"what follows gzip member {members - 1}" if members > 1 else "the body"
                raise BadRequest(f"{what} is not gzip") from None
            size += len(plain)
            if size > limit:
                raise _too_large(limit)
            if plain:
                parts.append(plain)
            position += len(piece) - len(reader.unused_data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body may have at most {limit} bytes after decompression")
