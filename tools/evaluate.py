"""`detr-kit eval` as a script, for `torchrun tools/evaluate.py ...`; see `detr-kit eval --help`."""

import sys

from detr_kit.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "eval")
    main()
