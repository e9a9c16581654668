"""Print the dependencies of a pyproject.toml with its extra "privacy", or check that torch fits an image's variant."""

import sys
import tomllib
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Print the dependencies, or run the check."""
    if arguments[0] == "--check":
        import torch

        if arguments[1] == "cuda" and torch.version.cuda is None:
            sys.exit(f"VARIANT=cuda, but torch {torch.__version__} is a CPU build: name an index by TORCH_INDEX.")
        return
    project = tomllib.loads(Path(arguments[0]).read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["privacy"]]
    sys.stdout.write("\n".join(needed) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
