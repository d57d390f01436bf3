"""The functions behind ``import selfdistill``: plain arguments in, the commands' own machinery, plain results out.

Nothing is computed here. A function checks what it was given, calls the room that the command line calls too, and wraps
what comes back for a notebook. ``selfdistill/__init__.py`` says which name is found where.
"""
