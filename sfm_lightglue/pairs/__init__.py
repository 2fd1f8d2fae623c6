"""Which images are matched with which: plain functions from names to pairs, and the planner that chooses among them."""
