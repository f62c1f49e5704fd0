"""`tiller doctor`: says what would keep a server from running well on this machine, and how to mend it.

Each check is a function that returns a Finding. No check loads a model, needs a server, or changes a file.
"""
