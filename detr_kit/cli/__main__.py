"""`python -m detr_kit.cli` as `detr-kit`."""

from detr_kit.cli import main

if __name__ == "__main__":
    main()
