"""``python -m selfdistill``."""

from selfdistill.cli.app import main

if __name__ == "__main__":
    main()
