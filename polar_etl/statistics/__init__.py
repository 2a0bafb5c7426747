"""Moments that lose nothing, and what is done with them."""
