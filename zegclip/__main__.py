"""The command as a module, for launchers of several processes: `torchrun -m zegclip ...`."""

import sys

from zegclip.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
