"""Options: which images a run is about, and how they are shared out."""

from __future__ import annotations

from dataclasses import dataclass

from suture.launch.options.group import Group, option
from suture.runtime.data.augmentation import AUGMENTATIONS
from suture.runtime.data.partition import SCHEMES
from suture.runtime.data.registry import split_spec
from suture.runtime.data.source import Task


@dataclass(frozen=True, kw_only=True)
class DataOptions(Group):
    """Images and who has how many of them."""

    data: str = option("fundus-phantom", "data source, NAME or NAME:PATH", agree=True)
    grades: str = option(
        "binary", "binary (grade above 0) or all grades", choices=("binary", "all"), agree=True
    )
    task: str | None = option(
        None,
        "what labels are: one class an image (classification), grades in their order (ordinal), several findings an "
        "image (multi-label), masks (segmentation) [what the data is for]",
        choices=tuple(map(str, Task)),
        agree=True,
    )
    columns: str | None = option(
        None,
        "what a table calls its columns: image=NAME,label=NAME,patient=NAME,site=NAME, or some of them; finding=NAME "
        "for each finding",
        agree=True,
    )
    structure: str | None = option(
        None, "which values of a mask are the structure, such as 1,2 (default: all above 0)", agree=True
    )
    frame: int | None = option(
        None,
        "which frame of DICOM files that hold several (default: the representative one, else 1)",
        agree=True,
    )
    image_size: int | None = option(None, "pixels a side", agree=True)
    augment: str = option(
        "light", "how training images are varied (see below)", choices=(*AUGMENTATIONS,), agree=True
    )
    train_images: int | None = option(None, "training images per client", agree=True)
    validation_images: int | None = option(
        None, "validation images per client, held out of the training patients", agree=True
    )
    test_images: int | None = option(None, "test images per client", agree=True)
    held_out_images: int = option(0, "images per client that only attacks are judged on", agree=True)
    partition: str = option("iid", f"{', '.join(SCHEMES)} (the last two use every image)", agree=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        split_spec(self.data)
