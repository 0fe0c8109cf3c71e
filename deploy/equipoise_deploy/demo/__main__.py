"""`python -m equipoise_deploy.demo`, as `make demo` calls it: the same as `equipoise demo`."""

import typer

from .command import demo

if __name__ == "__main__":
    typer.run(demo)
