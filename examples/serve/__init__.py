"""A small server that recommends under requests: one process, one model, batches of concurrent calls.

It is an example to read and to change, not a part of the package. Run it from the folder ``examples``:
``python -m serve FOLDER``, where FOLDER is what ``cramer-peft demo`` wrote.
"""

from importlib.util import find_spec

from cramer_peft.errors import MissingExtraError

_missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
if _missing:
    raise MissingExtraError(
        f"the server needs {', '.join(_missing)}, not installed here. It comes with an extra: "
        "pip install 'cramer-peft[serve]'."
    )
