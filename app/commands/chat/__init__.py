"""`tiller chat`: a conversation in a terminal, and single questions for scripts. Knows only the HTTP API."""
