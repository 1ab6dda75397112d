"""ckpt on another machine: looking at it, and installing this very ckpt and its CRIU there, over SSH."""
