"""What is on disk: parts, the manifest, and the order in which they get there."""
