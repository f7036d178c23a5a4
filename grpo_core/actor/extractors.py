"""From observations to the features that a policy's layers see: SB3's three features extractors, in NumPy.

``FlattenExtractor`` (``MlpPolicy``) puts everything into one row, ``NatureCNN`` (``CnnPolicy``) convolves images,
``CombinedExtractor`` (``MultiInputPolicy``) does one or the other per key of a Dict and joins the rows. Images have
their channels first, ``(n_channels, height, width)``, as SB3 hands them to a policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from numpy.lib.stride_tricks import sliding_window_view

from grpo_core.spaces import Array, Observations, count_inputs, is_image_space

FloatArray = npt.NDArray[np.float32]
Layer = tuple[FloatArray, FloatArray]
Shapes = dict[str, tuple[int, ...]]

POLICY_NAMES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")
# Arguments that each policy's features extractor takes.
EXTRACTOR_ARGUMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "MlpPolicy": (),
        "CnnPolicy": ("features_dim", "normalized_image"),
        "MultiInputPolicy": ("cnn_output_dim", "normalized_image"),
    }
)
# Filters, kernel size and stride of NatureCNN's three convolutions (Mnih et al., Nature 518, 2015).
_CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
_MIN_IMAGE_SIZE = 36  # pixels; of fewer, the three convolutions leave none
# Windows of a few 84x84 images fill a CPU's cache; more at once take memory and no less time.
_MAX_IMAGES_AT_ONCE = 4


class ExtractorPlan(NamedTuple):
    """The description of a policy's features extractors.

    :param policy: One of ``POLICY_NAMES``.
    :param scales_images: Whether image spaces (``is_image_space``) are divided by 255.
    :param normalized_image: Whether any Box of three axes goes through the convolutions.
    :param n_cnn_features: Features per image.
    :param is_shared: Whether the policy and the value network share one extractor.
    """

    policy: str
    scales_images: bool
    normalized_image: bool
    n_cnn_features: int
    is_shared: bool

    @classmethod
    def from_json(cls, network: Mapping[str, Any]) -> "ExtractorPlan":
        """Read it from a model file's description of the network.

        :raises ValueError: If the description names what does not exist.
        """
        policy = network["policy"]
        flags = [network[name] for name in ("normalize_images", "share_features_extractor")]
        arguments = dict(network["features_extractor_kwargs"])
        if policy not in POLICY_NAMES or not set(arguments) <= set(EXTRACTOR_ARGUMENTS[policy]):
            raise ValueError(f"policy {policy!r} with features extractor {sorted(arguments)} is unknown.")
        # SB3 sets the argument itself where images are not to be scaled.
        normalized_image = arguments.pop("normalized_image", False) or not flags[0]
        n_cnn_features = next(iter(arguments.values()), 512 if policy == "CnnPolicy" else 256)
        if not all(isinstance(flag, bool) for flag in (*flags, normalized_image)) or type(n_cnn_features) is not int:
            raise ValueError(f"{dict(network)} does not describe a features extractor.")
        return cls(policy, flags[0], normalized_image, n_cnn_features, flags[1])

    def uses_cnn(self, space: spaces.Space[Any]) -> bool:
        """Tell whether a space, or a Dict's subspace, goes through convolutions."""
        return self.policy == "CnnPolicy" or (
            self.policy == "MultiInputPolicy" and is_image_space(space, self.normalized_image)
        )


class FeaturesExtractor(Protocol):
    """Maps observations ``(batch_size, *observation_shape)`` to features ``(batch_size, n_features)``."""

    def __call__(self, observations: Observations) -> FloatArray:
        """Extract features, ``(batch_size, n_features)``."""

    @property
    def arrays(self) -> tuple[FloatArray, ...]:
        """The weights held."""


@dataclass(frozen=True, eq=False)
class Flatten:
    """Puts all numbers into one row, discrete ones as one-hot vectors.

    :param n_choices: Choices per number of a Discrete or MultiDiscrete space; None for any other.
    :param scale: Divisor of the numbers.
    """

    n_choices: npt.NDArray[np.int64] | None
    scale: float

    def __call__(self, observations: Observations) -> FloatArray:
        """Extract features, ``(batch_size, n_inputs)``."""
        if isinstance(observations, dict):
            raise _make_dict_error(observations)
        rows = observations.reshape(len(observations), -1)
        if self.n_choices is not None:
            return _one_hot(rows, self.n_choices)
        numbers = rows.astype(np.float32, copy=False)
        return numbers if self.scale == 1.0 else numbers / np.float32(self.scale)

    @property
    def arrays(self) -> tuple[FloatArray, ...]:
        """Nothing: it has no weights."""
        return ()


def _one_hot(choices: Array, n_choices: npt.NDArray[np.int64]) -> FloatArray:
    """Turn choices ``(batch_size, n_components)`` into rows of one-hot vectors, ``(batch_size, sum(n_choices))``."""
    if (choices < 0).any() or (choices >= n_choices).any():
        raise ValueError(
            f"an observation of {n_choices.tolist()} choices lies outside them: they count from 0; fix the environment "
            "or its observation_space."
        )
    one_hot = np.zeros((len(choices), n_choices.sum()), np.float32)
    starts = np.cumsum(n_choices) - n_choices
    one_hot[np.arange(len(choices))[:, None], choices.astype(np.int64) + starts] = 1.0
    return one_hot


def _make_dict_error(observations: Mapping[str, Array]) -> TypeError:
    return TypeError(
        f"observations are a dict with keys {list(observations)}, but this policy observes one array; pass an array "
        "(batch_size, *observation_shape)."
    )


@dataclass(frozen=True, eq=False)
class NatureCnn:
    """Three convolutions and a linear layer, each followed by a ReLU.

    :param convolutions: Weights ``(kernel_size * kernel_size * n_channels, n_filters)`` and biases.
    :param linear: Weights ``(n_pixels * n_filters, n_features)``, whose rows run over pixels first, and biases.
    :param scale: Divisor of the pixels.
    """

    convolutions: tuple[Layer, ...]
    linear: Layer
    scale: float

    @classmethod
    def from_weights(cls, weights: Mapping[str, FloatArray], prefix: str, scale: float) -> "NatureCnn":
        """Take the weights that torch keeps under ``<prefix>.cnn`` and ``<prefix>.linear``.

        They are laid out for channels last: a window is then copied in long runs, half the work of a small batch.
        """
        convolutions = []
        for i, (n_filters, _, _) in enumerate(_CONVOLUTIONS):
            weight, bias = weights[f"{prefix}.cnn.{2 * i}.weight"], weights[f"{prefix}.cnn.{2 * i}.bias"]
            convolutions.append((_freeze(weight.transpose(2, 3, 1, 0).reshape(-1, n_filters)), bias))
        weight, bias = weights[f"{prefix}.linear.0.weight"], weights[f"{prefix}.linear.0.bias"]
        by_filter = weight.reshape(len(weight), _CONVOLUTIONS[-1][0], -1)
        linear = _freeze(by_filter.transpose(2, 1, 0).reshape(-1, len(weight)))
        return cls(tuple(convolutions), (linear, bias), scale)

    def __call__(self, observations: Observations) -> FloatArray:
        """Extract features, ``(batch_size, n_features)``."""
        if isinstance(observations, dict):
            raise _make_dict_error(observations)
        starts = range(0, len(observations), _MAX_IMAGES_AT_ONCE)
        rows = [self._convolve(observations[i : i + _MAX_IMAGES_AT_ONCE]) for i in starts]
        weight, bias = self.linear
        return _relu(np.concatenate(rows) @ weight + bias)

    def _convolve(self, images: Array) -> FloatArray:
        x = images.transpose(0, 2, 3, 1).astype(np.float32, order="C")
        if self.scale != 1.0:
            x /= np.float32(self.scale)
        for (weight, bias), (n_filters, size, stride) in zip(self.convolutions, _CONVOLUTIONS, strict=True):
            windows = sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
            batch_size, height, width = windows.shape[:3]
            patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(batch_size * height * width, -1)
            x = _relu(patches @ weight + bias).reshape(batch_size, height, width, n_filters)
        return x.reshape(len(images), -1)

    def list_filters(self) -> list[tuple[FloatArray, FloatArray, int]]:
        """List filters as torch lays them out, ``(n_filters, n_channels, size, size)``, with biases and strides."""
        filters = []
        for (weight, bias), (n_filters, size, stride) in zip(self.convolutions, _CONVOLUTIONS, strict=True):
            filters.append((weight.reshape(size, size, -1, n_filters).transpose(3, 2, 0, 1), bias, stride))
        return filters

    def get_linear(self) -> Layer:
        """Return the linear layer as torch lays it out, ``(n_features, n_filters * n_pixels)``, with its biases."""
        weight, bias = self.linear
        by_pixel = weight.reshape(-1, _CONVOLUTIONS[-1][0], len(bias))
        return by_pixel.transpose(2, 1, 0).reshape(len(bias), -1), bias

    @property
    def arrays(self) -> tuple[FloatArray, ...]:
        """The weights held."""
        return tuple(array for layer in (*self.convolutions, self.linear) for array in layer)


@dataclass(frozen=True, eq=False)
class Combined:
    """Runs one extractor per key of a Dict, and joins their features in the space's order."""

    parts: Mapping[str, Flatten | NatureCnn]

    def __call__(self, observations: Observations) -> FloatArray:
        """Extract features, ``(batch_size, n_features)``, from one array per key."""
        if not isinstance(observations, dict):
            raise TypeError(
                f"observations are one array of shape {observations.shape}, but this policy observes a Dict; pass a "
                f"dict of arrays with the keys {list(self.parts)}."
            )
        return np.concatenate([part(observations[key]) for key, part in self.parts.items()], axis=1)

    @property
    def arrays(self) -> tuple[FloatArray, ...]:
        """The weights held."""
        return tuple(array for part in self.parts.values() for array in part.arrays)


def make_extractor(
    space: spaces.Space[Any], plan: ExtractorPlan, weights: Mapping[str, FloatArray], prefix: str
) -> FeaturesExtractor:
    """Build an extractor.

    :param weights: Arrays by torch's names.
    :param prefix: Beginning of the names of this extractor's weights.
    """
    if isinstance(space, spaces.Dict):
        return Combined(
            {key: _make_part(sub, plan, weights, f"{prefix}.extractors.{key}") for key, sub in space.spaces.items()}
        )
    return _make_part(space, plan, weights, prefix)


def _make_part(
    space: spaces.Space[Any], plan: ExtractorPlan, weights: Mapping[str, FloatArray], prefix: str
) -> Flatten | NatureCnn:
    scale = 255.0 if plan.scales_images and is_image_space(space) else 1.0
    if plan.uses_cnn(space):
        return NatureCnn.from_weights(weights, prefix, scale)
    if isinstance(space, spaces.Discrete):
        return Flatten(np.array([space.n], np.int64), scale)
    return Flatten(space.nvec.astype(np.int64) if isinstance(space, spaces.MultiDiscrete) else None, scale)


def count_features(space: spaces.Space[Any], plan: ExtractorPlan) -> int:
    """Count the features that a policy's first layer sees."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return sum(plan.n_cnn_features if plan.uses_cnn(part) else count_inputs(part) for part in parts)


def list_shapes(space: spaces.Space[Any], plan: ExtractorPlan, prefix: str) -> Shapes:
    """List the shape of every weight of an extractor, by torch's names."""
    if isinstance(space, spaces.Dict):
        parts = {f"{prefix}.extractors.{key}": subspace for key, subspace in space.spaces.items()}
    else:
        parts = {prefix: space}
    shapes: Shapes = {}
    for name, part in parts.items():
        if plan.uses_cnn(part):
            check_image(part)
            shapes |= _list_cnn_shapes(part.shape or (), plan.n_cnn_features, name)
    return shapes


def check_image(space: spaces.Space[Any]) -> None:
    """Check that an image is large enough for the convolutions.

    :raises ValueError: With the space, the rule and the remedy.
    """
    if len(space.shape or ()) != 3 or min((space.shape or ())[1:]) < _MIN_IMAGE_SIZE:
        raise ValueError(
            f"observation space {space} is not supported by the convolutions: they take images (n_channels, height, "
            f"width) of at least {_MIN_IMAGE_SIZE} x {_MIN_IMAGE_SIZE} pixels; enlarge it with "
            "gymnasium.wrappers.ResizeObservation or flatten it."
        )


def _list_cnn_shapes(image_shape: tuple[int, ...], n_features: int, prefix: str) -> Shapes:
    shapes: Shapes = {}
    n_channels, height, width = image_shape
    for i, (n_filters, size, stride) in enumerate(_CONVOLUTIONS):
        shapes[f"{prefix}.cnn.{2 * i}.weight"] = (n_filters, n_channels, size, size)
        shapes[f"{prefix}.cnn.{2 * i}.bias"] = (n_filters,)
        n_channels, height, width = n_filters, (height - size) // stride + 1, (width - size) // stride + 1
    shapes[f"{prefix}.linear.0.weight"] = (n_features, n_channels * height * width)
    shapes[f"{prefix}.linear.0.bias"] = (n_features,)
    return shapes


def _relu(x: FloatArray) -> FloatArray:
    return np.maximum(x, np.float32(0), out=x)


def _freeze(array: FloatArray) -> FloatArray:
    frozen = np.ascontiguousarray(array)
    frozen.flags.writeable = False
    return frozen
