"""`detr-kit predict` as a script, for `torchrun tools/predict.py`."""

import sys

from detr_kit.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "predict")
    main()
