"""``python -m launch`` is the ``suture`` command, for a checkout that is not installed."""

from launch.entry import main

if __name__ == "__main__":
    main()
