"""`python -m couponflow` is the `couponflow` command."""

from couponflow.cli import main

if __name__ == "__main__":
    main()
