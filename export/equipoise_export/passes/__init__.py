"""The compiler at a glance: a marked graph becomes a sampler by these passes, in this order."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ExportError, PassFailed
from ..progress import phase
from .add_head import add_head
from .batch_samples import batch_samples
from .check import check
from .compilation import Compilation
from .count_cost import count_cost, count_network
from .fill_padding import fill_padding
from .find_layouts import find_layouts
from .fold_batchnorm import fold_batchnorm
from .list_sites import list_sites
from .mark_sampled import mark_sampled
from .mask_weights import mask_weights
from .merge_upsampling import merge_upsampling
from .simplify import simplify
from .split_concat import split_concat
from .take_difference import take_difference
from .take_slices import take_slices
from .tidy import tidy
from .to_half import to_half
from .unpack_masks import unpack_masks
from .write_metadata import write_metadata

PASSES: tuple[Callable[[Compilation], None], ...] = (
    simplify,  # one flat graph of ordinary operators and markers
    fold_batchnorm,  # into the convolution before it
    find_layouts,  # where the batch lies in every tensor
    list_sites,  # the markers become the contract's sites, in bit order
    count_network,  # what one pass costs, and how much of it lies before each site
    mark_sampled,  # what a mask can change, and the trunk that none can
    split_concat,  # W·[shared; sampled] = W_a·shared + W_b·sampled
    take_difference,  # softmax of two classes: z₁ − z₀ is all that it needs
    merge_upsampling,  # ConvTranspose and Conv are one convolution of the smaller image
    mask_weights,  # masks before a narrow 1×1 convolution: into its weights
    count_cost,  # what T samples will cost
    batch_samples,  # the sampled part runs once, as a batch of N·T
    unpack_masks,  # bits → factors
    to_half,  # --precision fp16: weights and activations half, statistics single
    add_head,  # logits → probabilities, or moments over the samples
    fill_padding,  # voxels outside the image
    tidy,  # the same network gives the same bytes
    take_slices,  # of a volume, one after the other under the same masks
    write_metadata,  # the contract goes into the file
    check,  # nothing random, nothing foreign, valid ONNX
)


def run_passes(c: Compilation, passes: tuple[Callable[[Compilation], None], ...] = PASSES) -> Compilation:
    """Runs the passes in order; what breaks is reported with the history that led there."""
    done: list[str] = []
    for compiler_pass in passes:
        try:
            with phase(compiler_pass.__name__.replace("_", " ")):
                compiler_pass(c)
        except ExportError:
            raise
        except Exception as error:
            history = ", ".join(done) or "none"
            raise PassFailed(
                f"pass `{compiler_pass.__name__}` failed after the passes {history}: {type(error).__name__}: {error}"
            ) from error
        done.append(compiler_pass.__name__)
    return c
