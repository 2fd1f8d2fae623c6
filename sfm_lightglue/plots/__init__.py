"""Figures for papers and notebooks, drawn with matplotlib (extra `plots`).

Every function returns a new figure and changes nothing else: neither pyplot nor `rcParams` is touched. The quick pictures that a
run writes come from `report/`, which needs only Pillow; both use the same colours and the same viewpoint.
"""
