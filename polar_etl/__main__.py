"""`python -m polar_etl` is `polar-etl`."""

from polar_etl.cli import main

if __name__ == "__main__":
    main()
