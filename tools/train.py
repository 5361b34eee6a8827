"""`detr-kit train` and `resume` as a script, for torchrun.

torchrun --nproc-per-node 2 tools/train.py CONFIG [key=value ...]
torchrun --nproc-per-node 2 tools/train.py resume RUN [key=value ...]
"""

import sys

from detr_kit.cli import main

if __name__ == "__main__":
    if sys.argv[1:2] != ["resume"]:
        sys.argv.insert(1, "train")
    main()
