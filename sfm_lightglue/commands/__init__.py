"""The commands: a table of them, and a module for each that reads its arguments, calls what computes, and prints the result."""
