"""The commands, one module each: it parses, calls the library, and renders what comes back."""

COMMANDS = ("normalize", "fit", "transform", "plan", "status", "verify", "generate")
"""Their names, in the order in which they are listed."""
