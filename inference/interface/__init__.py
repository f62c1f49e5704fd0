"""All that the gateway may import from the worker: messages, configuration, logs, directories. No torch."""
