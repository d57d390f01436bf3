"""The command line: arguments, commands, Ctrl-C."""
