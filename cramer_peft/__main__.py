"""``python -m cramer_peft``: the command ``cramer-peft``, for launchers that start a module."""

from cramer_peft.recsys.commands.app import main

if __name__ == "__main__":
    main()
