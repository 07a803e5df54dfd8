"""What is random in training only."""

from patchlib.backend import keras, ops
from patchlib.layers.base import Block, fraction


@keras.saving.register_keras_serializable("patchlib")
class StochasticDepth(Block):
    """Drop a residual branch for whole images at random while training (Huang et al., 2016).

    What is kept is divided by the probability of being kept, so nothing changes at inference.

    Args:
        rate: probability that an image's branch is dropped.

    Input and output: float (N, ...).

    Raises:
        ValueError: ``rate`` isn't at least 0 and less than 1.
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        fraction(rate=rate)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x, training=None):
        if not training or not self.rate:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return x * ops.cast(kept, x.dtype) / (1 - self.rate)
