"""Columns of the output as bytes: pages, column chunks, row groups."""
