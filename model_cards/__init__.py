"""The template of model cards; beside it in the repository, but not in the package, lie the default model's card."""
