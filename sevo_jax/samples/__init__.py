"""What a step trains on: the epochs of each kind of training, addressed by number."""

from sevo_jax.samples.epochs import Epochs, ahead
from sevo_jax.samples.frames import FrameBatch, FrameEpochs
from sevo_jax.samples.masked import MaskedBatch, MaskedEpochs
from sevo_jax.samples.negatives import NegativeSampler
from sevo_jax.samples.packing import PackedBatch, PackedEpochs, left_pad
from sevo_jax.samples.prefixes import PrefixBatch, PrefixEpochs, RunBatch, RunEpochs
from sevo_jax.samples.runs import Runs
from sevo_jax.samples.sessions import SessionBatch, SessionEpochs
from sevo_jax.samples.triplets import TripletBatch, TripletEpochs

__all__ = [
    "Epochs",
    "FrameBatch",
    "FrameEpochs",
    "MaskedBatch",
    "MaskedEpochs",
    "NegativeSampler",
    "PackedBatch",
    "PackedEpochs",
    "PrefixBatch",
    "PrefixEpochs",
    "RunBatch",
    "RunEpochs",
    "Runs",
    "SessionBatch",
    "SessionEpochs",
    "TripletBatch",
    "TripletEpochs",
    "ahead",
    "left_pad",
]
