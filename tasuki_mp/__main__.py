"""`python -m tasuki_mp`: the same as `tasuki-mp`."""

# Children import the main script again: nothing else may happen at its top level.
if __name__ == "__main__":
    from tasuki_mp.cli import main

    main()
