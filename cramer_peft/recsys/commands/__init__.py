"""The commands of ``cramer-peft`` that work on a user's own data; each module imports what is heavy when it runs."""
