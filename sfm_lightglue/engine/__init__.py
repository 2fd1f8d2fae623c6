"""Fast LightGlue for many pairs: computes what the network of `networks.lightglue` computes."""
