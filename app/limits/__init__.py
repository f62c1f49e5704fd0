"""Who may use how much: access tokens, concurrent requests, tokens per minute. Knows no HTTP."""
