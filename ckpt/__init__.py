"""The program: what people type (`ckpt.cli`), and the story of each verb (`ckpt.ops`)."""

__version__ = "0.1.0"

SOFTWARE = f"ckpt {__version__}"
FEATURES = ["cold", "warm", "lazy"]
"""What this version can do in a migration; both ends tell each other."""
