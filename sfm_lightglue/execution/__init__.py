"""Spreads work over cores and shows its progress. Knows no product."""
