"""``suture check DATA [KIT]``: what a site has, before it joins."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import suture.models.registry as nets
from suture.launch.check.page import Findings, page
from suture.launch.check.policy import policy_findings
from suture.launch.kits.kit import Kit
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.policy.policy import Policy, training_set
from suture.launch.site import own_images
from suture.launch.site.own_images import SiteDataConfig
from suture.runtime.consortium.credentials import Role
from suture.runtime.data.class_names import matched, parse_map, parse_names, with_images
from suture.runtime.data.site_shares import largest_balanced
from suture.runtime.data.source import Source, Task
from suture.runtime.data.survey import Survey, survey
from suture.runtime.errors import ConfigError, DataError

_MANY = 200
"""Pictures from which on a progress bar is shown."""


@click.command()
@click.argument("data", metavar="DATA")
@click.argument("kit", type=click.Path(path_type=Path), required=False)
@click.option("--grades", type=click.Choice(["binary", "all"]), default="binary", help="as for join [binary]")
@click.option("--task", type=click.Choice([*map(str, Task)]), help="as for join [what DATA is for]")
@click.option("--columns", metavar="image=NAME,label=NAME,...", help="as for join")
@click.option("--structure", metavar="N,N", help="as for join")
@click.option("--frame", type=int, metavar="N", help="as for join")
@click.option(
    "--image-size", type=int, help="pixels a side in the run [classification: 64, segmentation: 128]"
)
@click.option("--classes", metavar="NAME,NAME", help="the run's classes, where they are known")
@click.option("--class-map", metavar="THEIRS=OURS,...", help="as for join")
@click.option("--validation", type=float, help="as for join: share of all images to validate on [0.1]")
@click.option("--test", type=float, help="as for join: share of all images to test on [0.2]")
def check(
    data: str,
    kit: Path | None,
    grades: str,
    task: str | None,
    columns: str | None,
    structure: str | None,
    frame: int | None,
    image_size: int | None,
    classes: str | None,
    class_map: str | None,
    validation: float | None,
    test: float | None,
) -> None:
    """Look at DATA as 'suture join --data DATA' would, and say whether a site can join with it.

    Decodes every picture: names those that cannot be read, and exact copies. Shows classes, patients, sizes, the
    division that join would make, the largest balanced sets, and memory. With KIT also what the kit's policy.toml makes
    of it. Ends with code 0 where a site could join, else with another and a last line that says what to mend.
    """
    options = AskedOptions(
        data=data,
        grades=grades,
        task=task,
        columns=columns,
        structure=structure,
        frame=frame,
        image_size=image_size,
    ).resolved()
    config = SiteDataConfig(
        class_map={} if class_map is None else parse_map(class_map), validation=validation, test=test
    )
    own = None if kit is None else Kit.read(kit, Role.CLIENT)
    name = "site" if own is None else own.name
    source = own_images.open_own(options, {}, name, config)
    found = Findings(options=options, source=source, survey=_looked_at(source, options))
    if found.survey.unreadable:
        found.problems.append(
            f"remove or replace the {len(found.survey.unreadable)} images that cannot be read, named above"
        )
    if classes is not None:
        _match(found, parse_names(classes))
    _divide(found, name, config)
    if own is not None and found.images is not None:
        patients, images = training_set(found.images)
        lines, forbidden = policy_findings(Policy.read(own.policy), own.policy, options, patients, images)
        found.policy.extend(lines)
        found.problems.extend(forbidden)
    click.echo(page(found))
    if found.problems:
        more = f" (and {len(found.problems) - 1} more, see above)" if len(found.problems) > 1 else ""
        raise DataError(f"a site cannot join with {data} as it is: {found.problems[0]}{more}")


def _looked_at(source: Source, options: RunOptions) -> Survey:
    channels = nets.model_entry(options.model).in_channels
    number = len(source.examples)
    shown = number >= _MANY and sys.stderr.isatty()
    if not shown:
        return survey(source, options.image_size, channels)
    with click.progressbar(length=number, label="looking at every picture", file=sys.stderr) as bar:
        return survey(source, options.image_size, channels, lambda: bar.update(1))


def _match(found: Findings, classes: tuple[str, ...]) -> None:
    try:
        found.source = matched(found.source, classes)
    except DataError as error:
        found.problems.append(str(error))


def _divide(found: Findings, name: str, config: SiteDataConfig) -> None:
    try:
        found.images = own_images.divide(found.source, found.options, {}, name, config)
    except (ConfigError, DataError) as error:
        found.problems.append(str(error))
        return
    found.balanced = largest_balanced(with_images(found.source), 0)
    used = sum(map(len, (found.images.shares[0].train, found.images.shares[0].validation)))
    found.check_memory(used + len(found.images.shares[0].test))
