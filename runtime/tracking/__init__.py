"""Which memory of a process changed since the last look: see tracker.py."""
