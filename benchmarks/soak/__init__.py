"""Sends a long mixed load to a running server, and looks for failures, growth and leaks."""
