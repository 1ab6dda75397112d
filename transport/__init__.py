"""Bytes and messages between two hosts.  Knows nothing of containers.

errors      what can go wrong, as kinds that a caller tells apart
framing     messages on a byte stream: bounded, strict, sans I/O, and a thin link over it
messages    every message that may cross the wire, with its fields and bounds
protocol    the migration transaction: two pure state machines and the recovery decision
ssh         an authenticated session with the other host (paramiko, OpenSSH's own configuration)
lanes       one byte stream for bulk data: the contract, and one module for each way
fakes       a link and a lane in memory, for tests
"""
