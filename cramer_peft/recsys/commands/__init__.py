"""The commands of ``cramer-peft``. Each module imports what is heavy only when it runs."""
