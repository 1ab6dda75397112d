"""Programs that show ckpt at work. Each runs from a checkout: python -m examples.NAME."""
