"""Access control and limits: access tokens, concurrent requests, tokens per minute. Knows no HTTP."""
