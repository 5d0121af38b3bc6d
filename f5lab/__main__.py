"""``python -m f5lab``."""

from f5lab.cli import main

if __name__ == "__main__":
    main()
