"""The small process per container that outlives the CLI (see `__main__`)."""
