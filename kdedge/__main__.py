"""`python -m kdedge` is the `kdedge` command."""

from kdedge.cli.main import main

if __name__ == "__main__":
    main()
