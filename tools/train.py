"""`detr-kit train` as a script, for `torchrun tools/train.py ...`; see `detr-kit train --help`."""

import sys

from detr_kit.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
