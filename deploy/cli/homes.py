"""Which home folder a command means: the given one, or the only one in the working folder."""

from __future__ import annotations

from pathlib import Path

from deploy.errors import CommandError

COORDINATOR_NAME = "auricle-coordinator"
SITE_PREFIX = "auricle-site-"


def coordinator_root(home: Path | None) -> Path:
    """The coordinator's home, made or not."""
    return (home or Path(COORDINATOR_NAME)).absolute()


def new_site_root(home: Path | None, name: str) -> Path:
    """Where a new site of this name goes."""
    return (home or Path(f"{SITE_PREFIX}{name}")).absolute()


def existing_coordinator(home: Path | None) -> Path:
    """The coordinator's home. Raises CommandError (home-missing) when it was never made."""
    root = coordinator_root(home)
    if not (root / "coordinator.toml").is_file():
        raise CommandError(
            f"{root} is not a coordinator's home",
            remedy="make one with `auricle coordinator init`, or name it with --home",
            code="home-missing",
        )
    return root


def existing_site(home: Path | None) -> Path:
    """A site's home: the given one, or the only `auricle-site-*` in the working folder.

    Raises CommandError: home-missing where there is none, home-ambiguous where there are several.
    """
    if home is not None:
        if not (home / "site.toml").is_file():
            raise CommandError(
                f"{home} is not a site's home",
                remedy="make one with `auricle site init NAME`, or correct --home",
                code="home-missing",
            )
        return home.absolute()
    found = sorted(path.parent for path in Path().glob(f"{SITE_PREFIX}*/site.toml"))
    if not found:
        raise CommandError(
            "there is no site in this folder",
            remedy="make one with `auricle site init NAME`, or name its home with --home",
            code="home-missing",
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise CommandError(
            f"there are several sites in this folder: {names}",
            remedy="say which with --home",
            code="home-ambiguous",
        )
    return found[0].absolute()


def existing_home(home: Path | None) -> Path:
    """A home of either role; without --home, the only one in the working folder."""
    if home is not None:
        if (home / "coordinator.toml").is_file():
            return home.absolute()
        return existing_site(home)
    if Path(COORDINATOR_NAME, "coordinator.toml").is_file():
        if any(Path().glob(f"{SITE_PREFIX}*/site.toml")):
            raise CommandError(
                "this folder holds a coordinator and a site",
                remedy="say which with --home",
                code="home-ambiguous",
            )
        return coordinator_root(None)
    return existing_site(None)
