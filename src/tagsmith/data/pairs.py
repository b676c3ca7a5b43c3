"""Two texts in one string, as a row of text pairs holds them."""

PAIR = "\x1e"
"""The separator of a text pair, whose two texts are one string."""
