"""Several processes that share one model: how they find each other, and what the leader tells the followers.

Knows no requests and no models.
"""
