"""Each image with the images that look most alike, from one global descriptor per image."""

from __future__ import annotations

from dataclasses import dataclass

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.global_descriptors import GlobalDescriptorOptions, check_global_descriptors, global_descriptors
from sfm_lightglue.products import Pair
from sfm_lightglue.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(GlobalDescriptorOptions):
    """Options of `configs/pairs/retrieval.yaml`."""

    name: str
    num_neighbours: int
    """Number of most similar images that each image is paired with."""
    min_score: float | None
    """Pairs with a lower similarity (-1 to 1) are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "pairs", num_neighbours=">= 1", min_score=">= -1, <= 1")


class RetrievalPairs:
    """Each image with the images that look most alike."""

    def __init__(self, options: RetrievalOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: RetrievalOptions) -> RetrievalPairs:
        """The source with these options."""
        return cls(options)

    def __call__(self, collection: Collection) -> list[Pair]:
        """See `top_k_pairs`. The reasons are `retrieval#RANK`."""
        from sfm_lightglue.pairs.nearest import top_k_pairs  # here, not at the top: it imports torch

        options, descriptors = self.options, global_descriptors(self.options, collection)
        return top_k_pairs(
            collection.names, descriptors, options.num_neighbours, min_score=options.min_score, device=collection.device
        )

    def descriptor_options(self, collection: Collection) -> GlobalDescriptorOptions | None:
        """The options, unless a file has the descriptors."""
        return self.options if self.options.global_descriptors is None else None

    def check(self, collection: Collection) -> None:
        """Checks the file of global descriptors, see `check_global_descriptors`."""
        check_global_descriptors(self.options, collection)
