# Makes `zegclip` register its classes now, and not when one of the modules here is half imported.
import transformers  # noqa: F401
