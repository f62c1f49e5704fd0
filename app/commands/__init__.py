"""The subcommands of `tiller`, one module each. They know the command line; `app.server` knows the server."""
