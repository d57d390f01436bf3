"""The functions behind ``import selfdistill``: they take plain arguments and return plain results.

Nothing is computed here. A function checks its arguments, calls the same code as the command line, and wraps the
result for a notebook. ``selfdistill/__init__.py`` maps each public name to its module.
"""
