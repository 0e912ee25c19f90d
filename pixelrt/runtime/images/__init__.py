"""Image files: read whole, with what belongs to them, and written the same way."""
