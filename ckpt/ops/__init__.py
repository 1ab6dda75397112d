"""A module per verb: each reads top-down as the story of what it does, with its way back."""
