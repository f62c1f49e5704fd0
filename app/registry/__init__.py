"""What several servers share: the addresses of workers, created concepts, directions, and callers' budgets.

The process is in server.py and what it uses; the servers' side is client.py and what uses it.
"""
