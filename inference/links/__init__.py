"""How commands reach a worker and reports leave it: the gateway that has started it, or several gateways."""
