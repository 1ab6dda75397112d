"""Driving CRIU: finding it, its options for our containers, its hooks, its failures in words."""
