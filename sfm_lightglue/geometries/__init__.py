"""Geometric verification: matches -> two-view geometries."""
