"""The small CLIP tokenizer of the picture world: one token per word of the captions, bytes for everything else."""

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
    """Build the tokenizer: a byte-level BPE with merges for the words of the captions.

    Any text can be tokenised; words that no caption contains are split into several tokens.

    Returns:
        A `CLIPTokenizer` with "<|startoftext|>" as id 0 and "<|endoftext|>" as id 1, which is also the padding token.
        The end token must not have id 2, by which CLIP's text model recognises its old, wrong configurations.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + _END_OF_WORD for letter in alphabet)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    # Not trained with the library, which breaks ties differently in every process: merges are added word by word.
    for word in vocabulary_words():
        while len(pieces := BPE(vocabulary, merges, end_of_word_suffix=_END_OF_WORD).tokenize(word)) > 1:
            left, right = pieces[0].value, pieces[1].value
            merges.append((left, right))
            vocabulary.setdefault(left + right, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MODEL_MAX_LENGTH)
