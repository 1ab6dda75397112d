"""A container as a record on disk, its states, and who may change them."""
