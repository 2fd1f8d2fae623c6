"""Orientation from the pictures: photos that verify with few others are tried in four turns."""
