"""LightGlue for many pairs: the network of `networks.lightglue`, rewritten for speed."""
