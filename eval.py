"""
Evaluate a model on seen and unseen classes: `python eval.py [CONFIG.yaml] [--model PATH] [--field value ...]`.

Also under `torchrun` or `accelerate launch`; see [`zegclip.commands.evaluate`].
"""

from zegclip.commands.evaluate import main
from zegclip.training.arguments import complaints_of

if __name__ == "__main__":
    with complaints_of("eval.py"):
        main()
