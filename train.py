"""
Train a zero-shot segmentation adapter: `python train.py [CONFIG.yaml] [--field value ...]`.

Also `accelerate launch train.py ...` or `torchrun ... train.py ...`; see [`zegclip.commands.train`].
"""

from zegclip.commands.train import main
from zegclip.training.arguments import complaints_of

if __name__ == "__main__":
    with complaints_of("train.py"):
        main()
