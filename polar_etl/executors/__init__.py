"""Those who run tasks."""
