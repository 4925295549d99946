"""A split net's weights as one state dict: the names and shapes of the uncut net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from suture.models.split import SplitModel

SHOWN_KEYS = 5


def whole_state_dict(split: SplitModel) -> dict[str, Tensor]:
    """The union of the parts' state dicts, in the order of the forward pass.

    The tensors share memory with the parts, as ``nn.Module.state_dict`` has it; clone what must not move.

    Raises:
        ValueError: two parts use the same parameter name.
    """
    whole: dict[str, Tensor] = {}
    for part_name, part in split.parts().items():
        state = part.state_dict()
        if twice := whole.keys() & state.keys():
            raise ValueError(
                f"parameter names must be unique over the parts, got {_shown(sorted(twice))} again in the "
                f"{part_name}; name the parts' blocks as in the uncut net"
            )
        whole |= state
    return whole


def final_layer(split: SplitModel) -> str:
    """The name of the layer that gives the logits: "fc" in a residual net, "out" in a U-Net."""
    return list(whole_state_dict(split))[-1].rpartition(".")[0]


def load_weights(split: SplitModel, state_dict: Mapping[str, Tensor]) -> bool:
    """Loads a whole net's state dict into the parts, all of it or nothing.

    A file without the final layer (``fc.*``), or with one for another number of classes, keeps the initial one. Batch
    norm's counters may be absent too: torchvision's published files are older than they are. A first word that all
    names of the file share and none of the net's has is left out, as ``module.`` of DataParallel.

    Returns:
        Whether the final layer is the file's, and not the initial one.

    Raises:
        ValueError: keys are missing, unexpected or mis-shaped; at most five of each are named.
    """
    whole = whole_state_dict(split)
    state_dict = _without_prefix(state_dict, whole)
    final = final_layer(split) + "."
    if _has_other_classes(state_dict, {key: whole[key] for key in whole if key.startswith(final)}):
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith(final)}
    absent = [key for key in whole if key not in state_dict]
    if all(key in absent for key in whole if key.startswith(final)):
        absent = [key for key in absent if not key.startswith(final)]
    missing = [key for key in absent if not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state_dict if key not in whole]
    misshaped = [key for key in whole if key in state_dict and not _same_shape(state_dict[key], whole[key])]

    described = [f"{key} (needs {_shape(whole[key])}, got {_shape(state_dict[key])})" for key in misshaped]
    kinds = {"missing": missing, "unexpected": unexpected, "mis-shaped": described}
    problems = [f"{kind} {_shown(keys)}" for kind, keys in kinds.items() if keys]
    if problems:
        remedy = "give the state dict of the same net, uncut"
        raise ValueError(f"weights do not fit the net: {'; '.join(problems)}; {remedy}")
    for part in split.parts().values():
        own = {key: state_dict[key] for key in part.state_dict() if key in state_dict}
        part.load_state_dict(own, strict=False)  # strictness is above, over the whole net
    return any(key.startswith(final) for key in state_dict)


def _has_other_classes(given: Mapping[str, Tensor], final: Mapping[str, Tensor]) -> bool:
    """Whether a file's final layer is whole and differs from the net's in its number of outputs alone."""
    if not all(
        isinstance(given.get(key), Tensor) and given[key].ndim == own.ndim for key, own in final.items()
    ):
        return False
    return any(given[key].shape != own.shape for key, own in final.items()) and all(
        given[key].shape[1:] == own.shape[1:] for key, own in final.items()
    )


def _without_prefix(state_dict: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict under the net's own names; wrappers may stand one in another."""
    while True:
        first = {key.partition(".")[0] for key in state_dict}
        if len(first) != 1 or first <= {key.partition(".")[0] for key in whole}:
            return state_dict
        shorter = {key.partition(".")[2]: value for key, value in state_dict.items()}
        if "" in shorter:
            return state_dict
        state_dict = shorter


def _same_shape(value: object, wanted: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == wanted.shape


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _shown(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + more
