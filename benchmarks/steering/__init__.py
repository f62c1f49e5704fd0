"""Does steering work? Measured from outside: a real server, plain transformers, scorers of others."""
