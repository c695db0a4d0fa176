"""
Evaluate a model on seen and unseen classes: `python eval.py [NAME_OR_YAML] [--model PATH] [--field value ...]`.

The same as `zegclip eval`; also for `accelerate launch eval.py ...` and `torchrun ... eval.py ...`.
"""

import sys

from zegclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]], program="eval.py"))
