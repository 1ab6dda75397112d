"""Project quotas: what all files below a directory may take of their file system's space."""
