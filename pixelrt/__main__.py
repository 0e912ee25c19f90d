"""``python -m pixelrt``."""

from pixelrt.cli.main import main

if __name__ == "__main__":
    main()
