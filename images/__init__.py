"""Checkpoints as data: image streams, the checkpoint stream, the store, manifests, inspection.

This package knows nothing of processes and containers. What it calls a *part* is one named blob of
a checkpoint: an image file of CRIU (kind ``criu``) or anything else that belongs to it (kind
``files``). docs/image-format.md describes what is written to disk and into streams.
"""
