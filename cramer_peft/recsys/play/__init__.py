"""The page of ``cramer-peft play``: one person tries requests on a recommender, in a browser on the same machine."""
