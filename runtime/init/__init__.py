"""The static init that is pid 1 in every container, as a layer of its own."""
