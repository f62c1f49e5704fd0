"""The load benchmark: Tiller and its peers in turns. Only one server runs at a time."""
