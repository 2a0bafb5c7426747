"""Column chunks of one page each, those of many columns and row groups decoded at one go."""
