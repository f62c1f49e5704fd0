"""The served models: what each consists of, how one is loaded, and how a request finds its own."""
