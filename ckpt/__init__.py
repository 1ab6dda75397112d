"""The program: what people type (`ckpt.cli`), and the story of each verb (`ckpt.ops`)."""

__version__ = "0.1.0"
