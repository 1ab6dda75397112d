"""`python -m ckpt`."""

from ckpt.cli import main

if __name__ == "__main__":
    main()
