"""`python -m serving [serve]`, `… check FOLDER`, `… seal FOLDER`, `… look KIND PATH`, `… settings`."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving", description="The model server of ModelServeAI."
    )
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("serve", help="serve the bundle that SERVING_BUNDLE names (the default)")
    check = verbs.add_parser(
        "check", help="print what is wrong with a model's folder; exit 1 when something is"
    )
    check.add_argument("folder", type=Path)
    seal = verbs.add_parser("seal", help="write manifest.json over the files of a bundle, print its sha256")
    seal.add_argument("folder", type=Path)
    look = verbs.add_parser("look", help="write what a model's file tells of itself into a JSON file")
    look.add_argument("kind")
    look.add_argument("path", type=Path)
    look.add_argument("report", type=Path)
    look.add_argument("--trust-pickle", action="store_true")
    look.add_argument("--input", action="append", default=[], metavar="NAME:TYPE:SHAPE")
    verbs.add_parser("settings", help="print the variables that a server reads")
    chosen = parser.parse_args(arguments)
    if chosen.verb == "settings":
        from serving.settings_table import settings_table

        print(settings_table())
        return 0
    if chosen.verb == "check":
        from serving.check import check_folder

        problems = check_folder(chosen.folder)
        for problem in problems:
            print(problem)
        return 1 if problems else 0
    if chosen.verb == "look":
        from serving.looking.telling import tell

        return tell(chosen.kind, chosen.path, chosen.report, chosen.input, trust_pickle=chosen.trust_pickle)
    if chosen.verb == "seal":
        from serving.inference.bundle import seal as write_manifest

        if not chosen.folder.is_dir():
            print(f"{chosen.folder}: not a folder", file=sys.stderr)
            return 1
        print(write_manifest(chosen.folder))
        return 0
    # Nearly all of the objects that are made while starting stay: looking for garbage among them takes a
    # seventh of the time. The service turns it on again when it is ready.
    gc.disable()
    from serving.run import serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
