"""The gateway: knows HTTP, text, tokens and people; no torch."""

# Aleph Alpha's Python client refuses a server whose /version is not 1.x with x >= 19,
# so this project's own version numbers continue from there.
__version__ = "1.20.0"
