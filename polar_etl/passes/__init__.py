"""The tasks of both passes, and what drives them."""
