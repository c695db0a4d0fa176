"""The commands of `zegclip`, one file each."""
