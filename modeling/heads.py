"""The table of decode heads: from `decode_head_type` to the class."""

from .head_base import DecodeHead
from .head_consensus import ConsensusDecodeHead
from .head_similarity import SimilarityDecodeHead
from .head_spectral import SpectralDecodeHead
from .head_zegclip import ZegClipDecodeHead

DECODE_HEADS: dict[str, type[DecodeHead]] = {
    "zegclip": ZegClipDecodeHead,
    "spectral": SpectralDecodeHead,
    "consensus": ConsensusDecodeHead,
    "similarity": SimilarityDecodeHead,
}

__all__ = ["DECODE_HEADS"]
