"""Running the arrays: a folded ViT with QuickGELU in NumPy, no torch."""

import numpy as np

from kdedge.errors import DataError


def load(path, *, n_threads=None, built_with=None):
    """Loads the arrays."""
    del n_threads, built_with
    try:
        with np.load(path) as file:
            return NumpyModel(dict(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


class NumpyModel:
    """A folded model's arrays."""

    name = "toy"
    pixels = "float"

    def __init__(self, arrays):
        self._arrays = arrays
        low, high = arrays["batches"]
        self.batches = (int(low), int(high))
        self.image_shape = (3, int(arrays["size_px"]), int(arrays["size_px"]))

    def describe(self):
        """Name, version and device."""
        return f"toy numpy {np.__version__} CPU"

    def close(self):
        """Frees the arrays."""
        self._arrays = {}

    def run(self, images):
        """[B, 3, S, S] -> [B, C]."""
        get = self._arrays
        weight = get["patch_conv.weight"]  # [D, 3, P, P]
        n, size = len(images), weight.shape[-1]
        side = images.shape[-1] // size
        tiles = images.reshape(n, 3, side, size, side, size).transpose(0, 2, 4, 1, 3, 5)
        patches = tiles.reshape(n, side * side, -1) @ weight.reshape(len(weight), -1).T
        tokens = self._norm("ln_pre", patches + get["positions"])
        tokens = np.concatenate([get["class_token"].repeat(n, 0), tokens], axis=1)
        n_blocks = sum(name.endswith(".query.weight") for name in get)
        for i in range(n_blocks):
            if i == get["appended_at"]:
                tokens = np.concatenate([tokens, get["appended"].repeat(n, 0)], axis=1)
            tokens = self._block(f"blocks.{i}.", tokens)
        hidden = self._norm("ln_post", tokens[:, 0])
        if "hidden.weight" in get:
            hidden = np.maximum(self._linear("hidden", hidden), 0)
        logits = self._linear("fused_head", hidden)
        if "features.weight" in get:
            logits = logits / np.linalg.norm(
                self._linear("features", hidden), axis=-1, keepdims=True
            )
        return logits.astype(np.float32)

    def _block(self, name, tokens):
        normed = self._norm(f"{name}ln_1", tokens)
        query, key, value = (
            self._heads(self._linear(f"{name}{part}", normed)) for part in ("query", "key", "value")
        )
        if f"{name}memory_key" in self._arrays:
            memory = [self._arrays[f"{name}memory_{part}"] for part in ("key", "value")]
            key, value = (
                np.concatenate([one, more.repeat(len(tokens), 0)], axis=2)
                for one, more in zip((key, value), memory, strict=True)
            )
        scores = query @ key.transpose(0, 1, 3, 2)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = (scores / scores.sum(axis=-1, keepdims=True)) @ value
        merged = attended.transpose(0, 2, 1, 3).reshape(tokens.shape)
        tokens = tokens + self._linear(f"{name}out", merged)
        hidden = self._linear(f"{name}mlp.c_fc", self._norm(f"{name}ln_2", tokens))
        hidden = hidden / (1 + np.exp(-1.702 * hidden))
        return tokens + self._linear(f"{name}mlp.c_proj", hidden)

    def _heads(self, tokens):
        n, n_tokens, _ = tokens.shape
        return tokens.reshape(n, n_tokens, int(self._arrays["n_heads"]), -1).transpose(0, 2, 1, 3)

    def _linear(self, name, values):
        return values @ self._arrays[f"{name}.weight"].T + self._arrays[f"{name}.bias"]

    def _norm(self, name, values):
        centered = values - values.mean(axis=-1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-5)
        weight = self._arrays.get(f"{name}.weight")
        return normed if weight is None else normed * weight + self._arrays[f"{name}.bias"]
