"""
Train a zero-shot segmentation adapter: `python train.py [NAME_OR_YAML] [--field value ...]`.

The same as `zegclip train`; also for `accelerate launch train.py ...` and `torchrun ... train.py ...`.
"""

import sys

from zegclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], program="train.py"))
