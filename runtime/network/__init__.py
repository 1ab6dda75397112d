"""A container's network: its description, its addresses, how it is plugged in and announced."""
