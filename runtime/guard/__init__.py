"""A CRIU whose tasks live on when it is killed at any moment.

A library in CRIU (client.c) hands its requests to ptrace(2) on to a process that outlives it (guardian.c); what both
have in common is in shared.h. guard.py starts it, shelter.py keeps both out of harm's way.
"""
