"""What a peer said before it closed is heard, though it left a word of ours unread."""

from __future__ import annotations

import socket

import pytest

from runtime.packets import past_reset


def test_last_words_are_heard_after_the_kernel_reports_that_ours_were_not() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        theirs.send(b"last words")
        ours.send(b"unread")
        theirs.close()
        assert past_reset(ours.recv, 100) == b"last words"
        assert past_reset(ours.recv, 100) == b""


def test_the_kernel_reports_it_first() -> None:
    """Else the function above would be for nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        theirs.send(b"last words")
        ours.send(b"unread")
        theirs.close()
        with pytest.raises(ConnectionResetError):
            ours.recv(100)
