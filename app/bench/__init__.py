"""`tiller bench`: a closed loop of streaming clients against chat servers, ours or a peer's.

Knows HTTP and OpenAI's chat completions; nothing of our server behind them.
"""
