"""The load benchmark: Tiller and its peers in alternation, each alone on the machine while it is measured."""
