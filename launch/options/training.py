"""Options: how the net is trained, by whom, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from suture.launch.options.group import Group, option
from suture.models.norms import LOCAL, NORMS, SHARED
from suture.models.precision import PRECISIONS
from suture.runtime.errors import ConfigError
from suture.runtime.scheduler import Together, parse_schedule
from suture.runtime.training.learning_rates import SCHEDULES
from suture.runtime.training.optim import OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Group):
    """Rounds, steps, and who trains when."""

    epochs: int | None = option(
        None, "rounds; every client trains once a round", least=1, free=True, agree=True
    )
    batch_size: int | None = option(None, "images a step", least=1, agree=True)
    optimizer: str | None = option(None, "optimizer of every part", choices=OPTIMIZERS, agree=True)
    lr: float | None = option(None, "learning rate", agree=True)
    lr_bottom: float | None = option(None, "learning rate of the bottom, where it is another", agree=True)
    lr_schedule: str = option(
        "constant",
        "how the learning rate changes from round to round (see below)",
        choices=(*SCHEDULES,),
        agree=True,
    )
    warm_up: int = option(
        0, "rounds in which the learning rate first grows to its full value", least=0, agree=True
    )
    weight_decay: float = option(0.0, "weight decay of every optimizer", agree=True)
    clip: float | None = option(
        None, "most that the norm of a gradient may be, of bottom, top and head each by itself", agree=True
    )
    label_smoothing: float = option(0.0, "share of each label that is spread over all classes", agree=True)
    prox: float = option(
        0.0,
        "FedProx: pull a client's bottom and head to what they were when its turn began, so strongly",
        agree=True,
    )
    norms: str = option(
        SHARED,
        "batch norms of bottom and head: shared by all clients, or local: each client keeps its own (FedBN)",
        choices=NORMS,
        agree=True,
    )
    precision: str = option(
        "fp32",
        "what parts compute in; bf16: by torch's autocast, weights stay fp32",
        choices=PRECISIONS,
        agree=True,
    )
    early_stop: int | None = option(
        None,
        "end the run after so many rounds without a better validation score; the best round's model is kept",
        least=1,
        free=True,
        agree=True,
    )
    class_weights: str = option(
        "none", "weigh classes against imbalance", choices=("none", "balanced"), agree=True
    )
    test_every_round: bool = option(
        False, "score test images after every round, not only after the last one", free=True
    )
    clients: int | None = option(
        None,
        "number of clients (under torchrun: its ranks less one; suture serve: all sites, evaluating ones too)",
        least=1,
    )
    schedule: str = option("round-robin", "who trains when: in turns or all at once (see below)")
    race: bool = option(
        False,
        "with parallel: take batches in the order of arrival, not in a drawn one; no two runs are alike",
        flag="async",
    )
    unsplit: bool = option(False, "train the joined net in one process, batch for batch the same: the oracle")
    pooled: bool = option(False, "with --unsplit: shuffle all clients' images together (central training)")
    seed: int = option(
        0, "public seed; what the server must not know also depends on the hand-off key", agree=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must lie in 0..2**63 - 1, got {self.seed}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"label-smoothing must lie in 0 to below 1, got {self.label_smoothing}; use 0.1, say"
            )
        if not 0 <= self.prox < float("inf"):
            raise ConfigError(f"prox must be at least 0 and finite, got {self.prox}; use 0.01, say")
        if self.pooled and not self.unsplit:
            raise ConfigError("pooled goes with --unsplit: split training never mixes the clients' images")
        if self.pooled and self.norms == LOCAL:
            raise ConfigError(
                "norms local does not go with pooled: there all clients' images train as one; use --norms shared"
            )
        together = parse_schedule(self.schedule, self.seed).together
        if together is not None and self.unsplit:
            raise ConfigError(
                f"schedule {self.schedule} needs a server: with --unsplit there is none; use --schedule round-robin"
            )
        if self.race and together is not Together.PARALLEL:
            raise ConfigError(
                f"async is for --schedule parallel, where one top takes all clients' batches, got {self.schedule}"
            )
