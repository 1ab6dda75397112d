"""A process tree that CRIU can dump, and CRIU run on it with our streamer at its side.

The least that is dumpable: own pid and mount namespaces, own session, no descriptor from outside,
the machine's root file system bound read-only as root. Network and user namespaces are the host's,
so that CRIU needs no iptables.
"""
