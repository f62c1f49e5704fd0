"""A long mixed load on a running server, and what is left of it afterwards."""
