"""The checkpoint stream: a whole checkpoint as one sequence of bytes.

It goes through pipes, sockets, SSH and files: ``ckpt dump -o -``, ``restore -``, ``checkpoints
export``, and a migration's lane. bundle_records has the layout. Several parts may be open at once,
since CRIU writes up to seven images at a time; a record says which part its payload belongs to.

**Payload is not seen here.** The writer asks the source pipe how much lies in it, writes a header
with that number and splices exactly so many bytes behind it; the reader splices them out again.
So one header of 16 bytes per pipe-full is all that Python handles.

**What is checked.** Each PART_CLOSE has the size; END has the totals and a blake3 digest of every
byte that isn't payload: headers, names, sizes, manifest. With digest=True each part's payload is
hashed too (and passes through a buffer for it); without it payload is trusted to what carries it:
SSH and TLS authenticate every byte, a file on a disk doesn't. The reader learns which it is from
the stream. A stream without END is truncated, whatever else is in it.
"""

from __future__ import annotations

from images.stream_reader import StreamReader
from images.stream_writer import StreamWriter

__all__ = ["StreamReader", "StreamWriter"]
