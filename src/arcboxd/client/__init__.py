"""The typed client of the daemon; the CLI and every other front use only this."""
