"""What a run is asked to do, and how it will go. Reads no data."""
