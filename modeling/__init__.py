"""What is computed: configuration, model, decode heads, losses, tuner and converter."""

# Registers the classes now, and not when one of the modules here is half imported.
import zegclip.registration  # noqa: F401
