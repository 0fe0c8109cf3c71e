"""Random changes of one normalised image and its labels that must not change what a network answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed; every range is sampled uniformly and independently for each image.

    Attributes:
        flips: axes of S that are mirrored with probability 1/2.
        crop: up to this many voxels are cut off each side before the image is normalised.
        rotation: degrees, to either side, in every plane.
        scale: sizes change by a factor of 1 ± this.
        shift: voxels, to either side, along every axis.
        contrast: intensities are multiplied by 1 ± this.
        brightness: and shifted by ± this, in normalised units.
        gamma: sign(x)·|x|^g with log g within ± this.
        noise: largest standard deviation of added Gaussian noise, in normalised units.
    """

    flips: tuple[int, ...] = ()
    crop: int = 0
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0

    def cut(
        self, image: NDArray[np.float32], target: NDArray[np.uint8], random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Cuts the sides off image `[C, *S]` and labels `[*S]`, so that other crops than the data's are met."""
        if not self.crop:
            return image, target
        kept = tuple(
            slice(random.integers(self.crop + 1), size - random.integers(self.crop + 1)) for size in image.shape[1:]
        )
        return image[(slice(None), *kept)], target[kept]

    def deform(
        self, image: NDArray[np.float32], target: NDArray[np.uint8], random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Mirrors, rotates, scales and shifts image `[C, *S]` about its centre, and labels `[*S]` or `[K, *S]` with it;
        those of a whole image, `[]` or `[K]`, stay.

        What comes from outside the image is 0, in the image and in the labels.
        """
        sizes = np.array(image.shape[1:], dtype=np.float64)
        rank = len(sizes)
        matrix = np.eye(rank) * (1 + random.uniform(-self.scale, self.scale))
        for axis in self.flips:
            matrix[axis] *= random.choice((-1.0, 1.0))
        for first in range(rank):
            for second in range(first + 1, rank):
                angle = np.deg2rad(random.uniform(-self.rotation, self.rotation))
                plane = np.eye(rank)
                plane[[first, second], [first, second]] = np.cos(angle)
                plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
                matrix = matrix @ plane
        shift = random.uniform(-self.shift, self.shift, rank)
        # From voxels about the centre to grid_sample's coordinates: -1..1 along each axis, last axis first.
        theta = np.hstack([matrix * sizes[None] / sizes[:, None], (2 * shift / sizes)[:, None]])
        theta[:, :rank] = theta[::-1, :rank][:, ::-1]
        theta[:, rank] = theta[::-1, rank].copy()
        grid = functional.affine_grid(
            torch.from_numpy(theta[None].astype(np.float32)), [1, 1, *image.shape[1:]], align_corners=False
        )
        moved = functional.grid_sample(torch.from_numpy(image)[None], grid, align_corners=False)[0].numpy()
        if target.ndim < rank:
            return moved, target
        labels = torch.from_numpy(target.astype(np.float32)).reshape(1, -1, *image.shape[1:])
        relabelled = functional.grid_sample(labels, grid, mode="nearest", align_corners=False)
        return moved, relabelled.numpy().astype(np.uint8).reshape(target.shape)

    def recolour(self, image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """Changes contrast, brightness and gamma of image `[C, *S]` and adds noise."""
        gamma = np.exp(random.uniform(-self.gamma, self.gamma))
        bent = np.sign(image) * np.abs(image) ** gamma
        bent = bent * (1 + random.uniform(-self.contrast, self.contrast))
        bent = bent + random.uniform(-self.brightness, self.brightness)
        noise = random.normal(0.0, random.uniform(0.0, self.noise), image.shape) if self.noise else 0.0
        return np.asarray(bent + noise, dtype=np.float32)
