"""Parameters of a run, checked before anything else happens."""

import hashlib
import itertools
import json
from typing import Annotated, ClassVar, Literal, Self

import pydantic
from pydantic import Field

from patchlib.schema import Checked, shown

# Pixels a side of the data sets that have a name.
SIZES = {"digits": 32, "cifar10": 32, "cifar100": 32}

# What no machine holds is refused before it's tried: so many numbers take 160 GB with gradients and AdamW's moments.
MOST_NUMBERS = 10**10

Count = Annotated[int, Field(ge=0, lt=2**31)]
Size = Annotated[int, Field(ge=1)]  # MOST_NUMBERS is its other bound
Kernel = Annotated[int, Field(ge=1, le=127)]
Depth = Annotated[int, Field(ge=1, le=1000)]
Side = Annotated[int, Field(ge=0, le=8192)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Recipe(Checked):
    """How a model is trained; what ``patchlib.train`` reads.

    ``weight_decay`` is decoupled as Keras' ``AdamW`` does it: each step takes ``learning_rate * weight_decay`` of every
    kernel and embedding, with ``decay_on="all"`` of biases and norms' gains as well. That product at the peak learning
    rate stands in the run card as ``effective_weight_decay``.
    The optimiser "muon" is Muon for the blocks' matrices, and AdamW for the rest, whose update and decay both have
    ``adamw_ratio`` of the rate.
    """

    epochs: int = Field(1, ge=1, le=10**6, description="passes over the training images")
    batch_size: int = Field(128, ge=1, lt=2**31)
    optimizer: Literal["adamw", "muon"] = "adamw"
    adamw_ratio: float = Field(0.2, gt=0, description="beside Muon: AdamW's rate, as a share of learning_rate")
    learning_rate: float = Field(1e-3, gt=0, description="peak of the schedule")
    schedule: Literal["constant", "one_cycle", "cosine", "plateau"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up of the cosine schedule, in epochs")
    weight_decay: float = Field(1e-4, ge=0)
    decay_on: Literal["kernels", "all"] = Field("kernels", description="which weights decay; embeddings are kernels")
    fixed_decay: bool = Field(False, description="decay doesn't shrink when the plateau schedule lowers the rate")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    whiten: bool = Field(False, description="start the first layer from the training images' whitened patches")
    init_from: str = Field("", description="a trained network to start from: its name, a run's folder, a .keras file")
    start_size: Side = Field(
        0, description="pixels a side of training images in the first epoch, growing to their own; 0: their own"
    )
    flip: bool = Field(True, description="mirror each training image with probability one half")
    alternate: bool = Field(False, description="flip mirrors each training image in every second epoch, not at random")
    pad: int = Field(0, ge=0, le=1024, description="pixels of zero padding before each training image is cropped back")
    zoom: float = Field(0.0, ge=0, lt=1, description="each training image is zoomed by up to this share, out or in")
    trivial_augment: bool = Field(False, description="change each training image by one random operation")
    erasing: float = Field(0.0, ge=0, le=1, description="probability that a rectangle of a training image is erased")
    mixup: float = Field(0.0, ge=0, description="alpha of MixUp's shares; 0 turns it off")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix's shares; 0 turns it off")
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32", description="auto: mixed_bfloat16 where the machine is faster with it, float32 elsewhere"
    )
    select_by: Literal["val_accuracy", "val_loss"] = Field("val_accuracy", description="which epoch's weights are kept")
    patience: Count = Field(0, description="stop after this many epochs without a better val_loss; 0: never")
    seed: int = Field(0, ge=0, lt=2**32)

    @pydantic.model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.fixed_decay and (self.schedule not in ("constant", "plateau") or self.optimizer != "adamw"):
            raise ValueError(
                f"fixed_decay: received True with schedule {self.schedule!r} and optimizer {self.optimizer!r}, "
                "accepted: False, or schedule 'plateau' or 'constant' with 'adamw'."
            )
        if self.start_size and (self.schedule == "plateau" or self.patience):
            raise ValueError(
                f"start_size: received {self.start_size} with schedule {self.schedule!r} and patience {self.patience}, "
                "accepted: 0, or another schedule than 'plateau' and no patience."
            )
        if self.warmup_epochs and self.schedule != "cosine":
            raise ValueError(
                f"warmup_epochs: received {self.warmup_epochs} with schedule {self.schedule!r}, "
                "accepted: 0, or schedule 'cosine'."
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: received {self.warmup_epochs}, accepted: less than epochs ({self.epochs})."
            )
        return self


class RunParameters(Recipe):
    """A recipe, and what it's trained on.

    An architecture's own also says its name in texts, by what its notebook's own run is known, in words who mixes space
    and who channels, whether it takes images of any size, and whether pixels enter standardized: less their mean, over
    their standard deviation; else over 255.
    """

    title: ClassVar[str]
    smoke: ClassVar = ""
    mixers: ClassVar[tuple[str, str]]
    any_size: ClassVar = True
    standardize: ClassVar[bool]

    tier: str = Field("smoke", min_length=1, description="name of the tier, for the run card")
    dataset: str = Field("digits", min_length=1, description="digits, cifar10, cifar100, an .npz file or a folder")
    image_size: Side = Field(0, description="images are brought to this many pixels a side; 0: as they are")
    limit: Count = Field(0, description="at most this many training images; 0: all")
    validation: Literal["stratified", "first", "last"] = Field(
        "stratified", description="which tenth of train validates; first and last are CIFAR's alone"
    )
    tensorboard: bool = Field(False, description="write TensorBoard's event files into the run's folder")
    run_dir: str = Field("", description="the run's own folder; empty: a new one below runs/")

    def least_weights(self, patches: int) -> int:
        """How many weights the network has at least: those of its matrices; ``patches`` of an image, 0 if unknown."""
        return 0

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        """Where the size of the images is known before they are read; ``load_data`` looks at the others."""
        size = getattr(self, "resize", 0) or self.image_size or SIZES.get(self.dataset, 0)
        patch_size, depth, dim = (getattr(self, name, 1) for name in ("patch_size", "depth", "dim"))
        if size % patch_size:
            fitting = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
            raise ValueError(
                f"patch_size: received {shown(patch_size)} for images of {size} x {size} pixels, accepted: {fitting}."
            )
        if self.start_size and not self.any_size:
            raise ValueError(f"start_size: received {self.start_size}, accepted: 0, since weights belong to positions.")
        if self.start_size % patch_size or 0 < size < self.start_size:
            raise ValueError(
                f"start_size: received {self.start_size}, accepted: 0, or a multiple of {patch_size} of at most "
                f"{size or 'the size of the images'}."
            )
        patches = (size // patch_size) ** 2
        if (numbers := self.least_weights(patches) + depth * dim * patches) > MOST_NUMBERS:
            least = min(numbers, 10**18)
            raise ValueError(
                f"depth {depth} and dim {shown(dim)}, with the other sizes, make at least {least:,} weights and values "
                f"of one image ({4 * least // 10**9:,} GB), accepted: {MOST_NUMBERS:,} in all."
            )
        return self

    def is_smoke(self) -> bool:
        """Whether it's the run of the notebook as it stands: by a digest of all parameters but the run's folder."""
        values = self.model_dump(exclude={"run_dir"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8] == self.smoke


class Compare(Checked):
    """Parameters of ``notebooks/compare.ipynb``."""

    cards: str = Field("", description="folder with the run cards, in it or below; empty: the project's own")


class ConvMixer(RunParameters):
    """Parameters of ``notebooks/convmixer.ipynb``; the model's are those of ``patchlib.models.convmixer``."""

    title: ClassVar = "ConvMixer"
    smoke: ClassVar = "bcc76d30"
    mixers: ClassVar = ("depthwise convolution", "pointwise convolution")
    standardize: ClassVar = False
    dim: Size = 256
    depth: Depth = 8
    kernel_size: Kernel = 5
    patch_size: Size = 2
    batchnorm_momentum: Rate = 0.99
    batchnorm_epsilon: float = Field(1e-3, gt=0)

    def least_weights(self, patches: int) -> int:
        return self.depth * self.dim * (self.dim + self.kernel_size**2)


class CCT(RunParameters):
    """Parameters of ``notebooks/cct.ipynb``; the model's are those of ``patchlib.models.cct``."""

    title: ClassVar = "CCT"
    smoke: ClassVar = "01771c6d"
    mixers: ClassVar = ("attention, convolutions in the tokenizer", "MLP")
    standardize: bool = Field(  # type: ignore[misc]  # elsewhere it's the architecture's, here the recipe's
        False, description="pixels enter less their mean, over their standard deviation; else over 255"
    )
    dim: Size = 128
    depth: Depth = 2
    heads: Size = 2
    key_dim: Size = 128
    mlp_dim: Size = 128
    conv_layers: Depth = 2
    conv_dim: Size = 64
    kernel_size: Kernel = 3
    padding: Literal["after_activation", "same", "symmetric"] = "after_activation"
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.1
    stochastic_depth: Rate = 0.1
    qkv_bias: bool = True
    activate_output: bool = True
    skip: Literal["input", "normalized"] = "input"

    def least_weights(self, patches: int) -> int:
        widths = [3, *[self.conv_dim] * (self.conv_layers - 1), self.dim]
        tokenizer = self.kernel_size**2 * sum(one * other for one, other in itertools.pairwise(widths))
        return tokenizer + self.depth * self.dim * (4 * self.heads * self.key_dim + 2 * self.mlp_dim)


class _Patches(RunParameters):
    """What the models that cut a resized image into patches have in common."""

    standardize: ClassVar = True
    resize: Side = 64
    patch_size: Size = 8
    dim: Size = 256
    depth: Depth = 4
    dropout: Rate = 0.2
    head_dropout: Rate = 0.2


class MLPMixer(_Patches):
    """Parameters of ``notebooks/mlp_mixer.ipynb``; the model's are those of ``patchlib.models.mlp_mixer``."""

    title: ClassVar = "MLP-Mixer"
    smoke: ClassVar = "e3e1ee94"
    mixers: ClassVar = ("MLP over positions, the same for every image", "MLP")
    any_size: ClassVar = False
    tokens_dim: Size = 64
    channels_dim: Size = 64
    shared_norm: bool = True
    final_norm: bool = False

    def least_weights(self, patches: int) -> int:
        return 2 * self.depth * (self.dim * self.channels_dim + patches * self.tokens_dim)


class FNet(_Patches):
    """Parameters of ``notebooks/fnet.ipynb``; the model's are those of ``patchlib.models.fnet``."""

    title: ClassVar = "FNet"
    smoke: ClassVar = "d01204c6"
    mixers: ClassVar = ("Fourier transform, no weights", "the same transform, MLP")
    hidden_dim: Size = 256
    norm: Literal["backward", "ortho"] = Field("backward", description="of the Fourier transform, as in numpy.fft")

    def least_weights(self, patches: int) -> int:
        return 2 * self.depth * self.dim * self.hidden_dim


class GMLP(_Patches):
    """Parameters of ``notebooks/gmlp.ipynb``; the model's are those of ``patchlib.models.gmlp``."""

    title: ClassVar = "gMLP"
    smoke: ClassVar = "424eda89"
    mixers: ClassVar = ("one matrix over positions, as a gate", "linear layers around the gate")
    any_size: ClassVar = False
    hidden_dim: int = Field(512, ge=2, multiple_of=2)
    skip: Literal["input", "normalized"] = "normalized"
    gate_stddev: float = Field(0.0, ge=0, description="of the gate's initial weights; 0: glorot uniform")
    final_norm: bool = False

    def least_weights(self, patches: int) -> int:
        return self.depth * (3 * self.dim * self.hidden_dim // 2 + patches**2)


class ViT(RunParameters):
    """Parameters of ``notebooks/vit.ipynb``; the model's are those of ``patchlib.models.vit``."""

    title: ClassVar = "ViT"
    smoke: ClassVar = "9d5e5197"
    mixers: ClassVar = ("attention", "MLP")
    standardize: ClassVar = True
    patch_size: Size = 4
    dim: Size = 128
    depth: Depth = 4
    pool: Literal["token", "mean"] = "token"
    heads: Size = 4
    mlp_dim: Size = 256
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.0
    stochastic_depth: Rate = 0.0

    def least_weights(self, patches: int) -> int:
        return self.depth * self.dim * (4 * self.dim + 2 * self.mlp_dim)

    @pydantic.model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads: received {shown(self.heads)}, accepted: a divisor of dim ({shown(self.dim)}).")
        return self


ARCHITECTURES: dict[str, type[RunParameters]] = {
    "convmixer": ConvMixer,
    "cct": CCT,
    "mlp_mixer": MLPMixer,
    "fnet": FNet,
    "gmlp": GMLP,
    "vit": ViT,
}
