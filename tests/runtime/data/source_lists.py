"""Sources that are lists of examples without pictures, and what holds for every division of them."""

from collections import Counter

import torch

from suture.runtime.data.source import Example, Source, Task


class ListSource(Source):
    """Examples without pictures."""

    def __init__(self, examples, num_classes=2, task=Task.CLASSIFICATION, names=None):
        names = names or [f"class{k}" for k in range(num_classes)]
        super().__init__("list", task, names, examples)

    def read(self, index, size, channels):
        pixels = torch.full((channels, size, size), index % 256, dtype=torch.uint8)
        return pixels, torch.tensor(self.examples[index].label or 0)


def simple(count, num_classes=2, per_patient=1, sites=("",), test_from=None):
    """Classes in turn, ``per_patient`` images a patient, sites by patient."""
    return ListSource(
        [
            Example(
                key=f"k{i}",
                patient=f"p{i // per_patient}",
                label=i % num_classes,
                site=sites[(i // per_patient) % len(sites)],
                official_test=test_from is not None and i >= test_from,
            )
            for i in range(count)
        ],
        num_classes,
    )


def sets_of(shares):
    return [part for share in shares for part in (share.train, share.validation, share.test)]


def check_exclusive(source, shares):
    """The oracle: plain sets of indices and patients."""
    seen: dict[str, int] = {}
    indices = [index for part in sets_of(shares) for index in part]
    assert len(indices) == len(set(indices))
    for number, part in enumerate(sets_of(shares)):
        for index in part:
            assert seen.setdefault(source.examples[index].patient, number) == number


def labels(source, indices):
    return Counter(source.examples[i].label for i in indices)
