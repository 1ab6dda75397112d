"""The pages of a container that is arriving: kept by process and address, until its restored tasks have them."""
