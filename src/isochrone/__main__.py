"""Runs the command line as `python -m isochrone`."""

from isochrone.cli.main import main

if __name__ == "__main__":
    main()
