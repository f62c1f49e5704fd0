"""The routes: each reads a request, passes it on, and makes the response. Other packages hold the rules."""
