"""Features and matches into a COLMAP database: cameras, geometric verification, rows."""
