"""Adapters that make this package usable from other programs."""
