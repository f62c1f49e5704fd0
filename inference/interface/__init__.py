"""The only part of the worker that the gateway imports: messages, configuration, logs. Imports no torch."""
