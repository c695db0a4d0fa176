"""The template of model cards, and the card of the embedded model."""
