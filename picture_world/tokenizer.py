"""The small CLIP tokenizer of the picture world: whole words for its captions, bytes for everything else."""

import itertools

from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from .captions import COLOUR_WORDS, OPENINGS, PROMPT, SIZE_WORDS
from .classes import CLASS_NAMES

MODEL_MAX_LENGTH = 32
_END_OF_WORD = "</w>"


def vocabulary_words() -> list[str]:
    """Return all words that captions use, in a fixed order."""
    phrases = (PROMPT, *OPENINGS, "a an the and on", *SIZE_WORDS, *COLOUR_WORDS, *CLASS_NAMES)
    words = itertools.chain.from_iterable(phrase.replace("{}", " ").replace("-", " ").split() for phrase in phrases)
    return list(dict.fromkeys(words))


def build_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer: a byte-level BPE whose merges spell out the words of the captions.

    Any text becomes tokens; a word that no caption uses falls into pieces.

    Returns:
        A `CLIPTokenizer` with "<|startoftext|>" as id 0 and "<|endoftext|>" as id 1, which also pads. Id 2 is no
        special token: CLIP's text model takes an end id of 2 for a sign of its old, wrong configurations.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + _END_OF_WORD for letter in alphabet)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    # The library's BPE training breaks ties differently in every process, so each word's merges are added in turn.
    for word in vocabulary_words():
        while len(pieces := BPE(vocabulary, merges, end_of_word_suffix=_END_OF_WORD).tokenize(word)) > 1:
            left, right = pieces[0].value, pieces[1].value
            merges.append((left, right))
            vocabulary.setdefault(left + right, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MODEL_MAX_LENGTH)
