"""The quiet parts of the page: what is trained, what it costs, and where the model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from suture.launch.output.report.numbers import RunNumbers
from suture.launch.output.report.tables import costs_table, num_classes, profile_table
from suture.launch.output.report.values import mapping, number, whole
from suture.launch.output.text import definitions, duration, size, text
from suture.models.plugins import split

_MOST_COLUMNS = 12
_WORDS = {"fp32": "", "none": "", "off": ""}
_OPTIONS = (
    ("labels", "labels"),
    ("schedule", "schedule"),
    ("exchange", "exchange"),
    ("wire", "wire format"),
    ("defence", "defence"),
    ("detector", "detector"),
    ("attack", "attack"),
    ("image_size", "image size"),
    ("batch_size", "batch size"),
    ("optimizer", "optimizer"),
    ("lr", "learning rate"),
    ("seed", "seed"),
)


def facts_of(numbers: RunNumbers) -> Iterator[tuple[str, str]]:
    """What is trained on what, as name and value."""
    options, classes = numbers.options, numbers.options.get("classes")
    yield "task", numbers.task
    counts = mapping(numbers.summary.get("clients_data") or options.get("clients_data")).values()
    kinds = sorted({str(mapping(told)["kind"]) for told in counts if mapping(told).get("kind")})
    if not kinds and isinstance(options.get("data"), str):
        kinds = [split(str(options["data"]))[0]]
    if kinds:
        yield "data", ", ".join(kinds)
    if isinstance(classes, list | tuple) and classes:
        yield "classes", ", ".join(map(str, classes))
    elif numbers.task == "classification" and num_classes(numbers):
        yield "classes", str(num_classes(numbers))
    if numbers.view == "server" and (expected := whole(options.get("clients"))):
        yield "sites", str(expected)
    for name, label in _OPTIONS:
        value = options.get(name)
        if isinstance(value, str | int | float) and _WORDS.get(str(value), str(value)):
            yield label, f"{value} pixels a side" if name == "image_size" else str(value)


def costs_section(numbers: RunNumbers) -> str:
    """Where the time of a step went if it was profiled, what the turns cost, and the totals."""
    parts = []
    if totals := list(_totals(numbers)):
        parts.append(definitions(totals))
    if numbers.costs:
        parts.append(costs_table(numbers.costs))
    if numbers.profile:
        few = dict(list(numbers.profile.items())[:_MOST_COLUMNS])
        parts.append(f"<h3>A step, part by part (medians)</h3>{profile_table(few)}")
    if not parts:
        parts.append('<p class="empty">nothing counted yet; totals come at the end of the run</p>')
    return f"<section><h2>What it costs</h2>{''.join(parts)}</section>"


def _totals(numbers: RunNumbers) -> Iterator[tuple[str, str]]:
    summary = numbers.summary
    if (speed := number(summary.get("images_per_second"))) is not None:
        yield "images a second while training", f"{speed:.1f}"
    wire = mapping(summary.get("wire_bytes_per_step"))
    if wire:
        up, down = size(number(wire.get("up"))), size(number(wire.get("down")))
        yield "wire, the largest step", f"{up} up, {down} down"
    for part, seconds in mapping(summary.get("seconds")).items():
        if number(seconds) is not None:
            yield f"{str(part).replace('_', ' ')}, all turns", duration(number(seconds))
    for name in ("bytes_up", "bytes_down"):
        if number(summary.get(name)) is not None:
            yield (
                {"bytes_up": "sent in all", "bytes_down": "received in all"}[name],
                size(number(summary[name])),
            )
    memory = {
        who: value
        for who, told in mapping(summary.get("peak_memory_bytes")).items()
        if (value := number(told))
    }
    if memory:
        server = memory.pop("server", None)
        told = [] if server is None else [f"server {size(server)}"]
        if memory:
            most = max(memory, key=lambda who: memory[who])
            told.append(f"{most} {size(memory[most])}" + (", the most of a site" if len(memory) > 1 else ""))
        yield "peak memory", "; ".join(told)
    if (turns := whole(summary.get("turns"))) is not None:
        undone = whole(summary.get("rolled_back_turns")) or 0
        yield "turns", f"{turns}" + (f", {undone} more rolled back" if undone else "")


def about_section(numbers: RunNumbers, versions: Mapping[str, str]) -> str:
    """Where the model is, its digest, and what wrote the page."""
    lines = []
    model = numbers.folder / "model.pt"
    if numbers.view == "site" and model.exists():
        best = (
            f" It holds the last round and the best one, round {numbers.best_round}."
            if numbers.best_round
            else ""
        )
        lines.append(
            f'<p>The trained model is in <a href="model.pt">model.pt</a> beside this page: '
            f"<code>{text(model.resolve())}</code>.{best}</p>"
        )
    elif numbers.view == "site":
        lines.append("<p>model.pt is written beside this page when the run has ended.</p>")
    else:
        lines.append(
            "<p>Each site has the trained model as <code>clients/NAME/model.pt</code> in its own folder; the "
            "server's checkpoints are in <code>checkpoints/</code>.</p>"
        )
    digest = numbers.summary.get("weights_sha256")
    if digest:
        lines.append(f"<p>weights_sha256 <code>{text(digest)}</code></p>")
    if numbers.summary.get("disagreement"):
        lines.append(f'<p class="unsure">{text(numbers.summary["disagreement"])}</p>')
    said = mapping(numbers.summary.get("versions")) or versions
    told = ", ".join(f"{name} {version}" for name, version in said.items())
    lines.append(f'<p class="note">{text(told)}</p>')
    return f"<section><h2>The model</h2>{''.join(lines)}</section>"
