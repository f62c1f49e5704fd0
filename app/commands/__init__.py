"""The subcommands of `tiller`, one module each. They know the command line; `app.server` must not."""
