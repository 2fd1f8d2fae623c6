"""Use of this package inside other programs."""
