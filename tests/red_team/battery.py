"""All attacks; and, as a program, those attacks in one isolation, by turns or side by side:

python -m red_team.battery landlock --threads 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gopd.sandbox import Isolation
from red_team import escape, exhaust, forge, persist, read, talk
from red_team.attack import Attack
from red_team.witness import World, as_json

ATTACKS: list[Attack] = [
    *forge.ATTACKS,
    *read.ATTACKS,
    *escape.ATTACKS,
    *exhaust.ATTACKS,
    *persist.ATTACKS,
    *talk.ATTACKS,
]


def name(attack: Attack) -> str:
    return f"{attack.theme}-{attack.name}"


def one_by_one(isolation: Isolation, attacks: Sequence[Attack]) -> dict[str, list[str]]:
    """What each got through with."""
    with World(isolation) as world:
        return {name(attack): [*world.play(attack), *world.found()] for attack in attacks}


def side_by_side(isolation: Isolation, attacks: Sequence[Attack], threads: int) -> dict[str, list[str]]:
    """From so many threads at once; what is left is looked for at the end."""
    with World(isolation) as world:
        with ThreadPoolExecutor(threads) as pool:
            found = dict(zip(map(name, attacks), pool.map(world.play, attacks), strict=True))
        return found | {"all together": world.found()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Attack programs in one isolation; what gets through, as JSON."
    )
    parser.add_argument("isolation", choices=("namespaces", "landlock", "none"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--theme", action="append", help="only these")
    options = parser.parse_args()
    attacks = [attack for attack in ATTACKS if not options.theme or attack.theme in options.theme]
    if options.threads:
        found = side_by_side(options.isolation, attacks, options.threads)
    else:
        found = one_by_one(options.isolation, attacks)
    print(as_json(found))
    sys.exit(any(found.values()))


if __name__ == "__main__":
    main()
