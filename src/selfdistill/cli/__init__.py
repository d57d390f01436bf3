"""What a user types: arguments, commands, Ctrl-C."""
