"""The routes: each reads a request, hands it on and answers. They hold no rules of their own."""
