"""The handle as PEFT sees it: a tuner, its registration with PEFT, and the names that its adapters can have."""
