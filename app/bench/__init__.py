"""Load test for `tiller bench`: a closed loop of streaming clients, for any OpenAI-compatible chat server.

Knows only HTTP and OpenAI's chat completions. Must not know Tiller's own server.
"""
