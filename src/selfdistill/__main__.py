"""``python -m selfdistill``."""

from selfdistill.cli import main

if __name__ == "__main__":
    main()
