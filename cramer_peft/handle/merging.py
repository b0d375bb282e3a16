"""Merging on the handle: one request in the weights, until it is taken out, or for good."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from cramer_peft.active import Gates, SeveralAdapters
from cramer_peft.errors import MergeError, RequestError, UnsupportedError
from cramer_peft.handle.requests import HandleRequests
from cramer_peft.leftovers import masked_layers
from cramer_peft.merging import Merged, plan_merge
from cramer_peft.requests import Strength
from cramer_peft.sources import AllRequests, adapter_source


class HandleMerging(HandleRequests):
    """Folding one request into the weights, and taking everything off."""

    @property
    def merged(self) -> bool:
        """Whether a request is merged into the weights."""
        return self._merged is not None

    def merge_request(self, requests: AllRequests, strength: Strength = None, safe_merge: bool = False) -> None:
        """Fold one request into the weights: every call then follows it, at the frozen model's cost.

        New tensors take the originals' places; :meth:`unmerge` puts the originals back, the very objects.

        Args:
            requests: One text, vector or mask state of one row; a dictionary of these for several adapters.
            strength: One number; None: the configuration's, or the mask state's own.
            safe_merge: Whether to refuse weights that would hold NaN or infinity.

        Raises:
            MergeError: If a request is merged already, a weight is shared with another module, or the module
                has no plain weight. Nothing was touched.
            RequestError: If there are several requests, or none.
        """
        self._check_merge_allowed()
        source = self.gate_source(requests, strength)
        if source is None:
            raise RequestError("there is nothing to merge: the request is None, blank or of strength 0.")
        self._merge(source.make(), self.active_names(), safe_merge)

    def _merge(self, gates: Gates, adapters: list[str], safe: bool) -> None:
        rows = {gate.rows for gate in gates.values()}
        if not rows:
            raise RequestError(f"there is nothing to merge: the requests of {adapters} have strength 0.")
        if rows != {1}:
            raise RequestError(f"one request can be merged, found {max(rows)} rows.")
        self._put_in_force(plan_merge(self.model, gates, adapters, safe))

    def _put_in_force(self, merged: Merged) -> None:
        if self.carrier.enabled:
            merged.put()
        self._merged = merged
        for layer in masked_layers(self.model):
            layer.merged_adapters = [name for name in merged.adapters if name in layer.request_mask_specs]

    def unmerge(self) -> None:
        """Put back the parameters that :meth:`merge_request` replaced; nothing happens where none is merged."""
        if self._merged is None:
            return
        if self.carrier.enabled:
            self._merged.take_out()
        self._merged = None
        for layer in masked_layers(self.model):
            layer.merged_adapters = []

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the stored default request of some adapters (None: of the active ones).

        Raises:
            UnsupportedError: If they have none: masks differ from request to request.
            MergeError: As for :meth:`merge_request`.
        """
        self._check_alive()
        self._check_merge_allowed()
        before = [] if self._merged is None else self._merged.adapters
        names = self.active_names() if adapter_names is None else list(adapter_names)
        names = [*before, *(name for name in names if name not in before)]
        if before and names == before:
            warnings.warn("All adapters are already merged, nothing to do.", stacklevel=2)
            return
        stored = {name: self.generator_of(self._named(name)).default_request for name in names}
        missing = sorted(name for name, vector in stored.items() if vector is None)
        if missing:
            raise UnsupportedError(
                f"adapters {missing} have no stored default request, and masks differ from request to request: merge "
                "one by merge_request(request), or store one by set_default_request(request)."
            )
        if names:
            made = [adapter_source(self, name, vector, None) for name, vector in stored.items()]
            sources = [source for source in made if source is not None]
            merged = self._merged
            self.unmerge()
            try:
                self._merge(SeveralAdapters(sources).make(), names, safe_merge)
            except BaseException:
                if merged is not None:
                    self._put_in_force(merged)
                raise

    def unmerge_adapter(self) -> None:
        """The same as :meth:`unmerge`, by PEFT's name."""
        self.unmerge()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Take the masks off and leave one request in the weights for good; returns the model.

        It is the request that is merged already, or else the stored default request.

        Raises:
            UnsupportedError: If there is neither.
            MergeError: If a masked part has no place in a weight (the output gates of recurrent layers).
        """
        if self._merged is None:
            self.merge_adapter(adapter_names, safe_merge=safe_merge)
        assert self._merged is not None
        if self._merged.kept:
            layer = self._merged.kept[0][0]
            raise MergeError(
                f"module {layer.module_name!r}: its gates on {', '.join(layer.unfoldable_parts())} have no place in a "
                "weight, so the masks cannot be taken off it. Keep the adapter, or leave the part out by module_parts."
            )
        assert self._record is not None  # what is merged is in use
        self._merged = None  # for good: what was replaced is not put back
        self._record.training.clear()  # nor the training mode, which PEFT's methods leave as it is
        trained = self._record.trained_modules(self.model)
        model = self.unload()
        for owner, name, module in trained:
            setattr(owner, name, module)
        return model

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not offered, and why: see the error."""
        raise UnsupportedError(
            "add_weighted_adapter mixes weights, and a generator's gates are not linear in its weights (hidden layer, "
            "sigmoid, products of factors): the mix would follow neither adapter. Make several adapters active by "
            "set_adapter([…]), or add up mask states."
        )

    def unload(self) -> nn.Module:
        """Take everything off the model, and return it.

        It is what it was before the first injection: the same module objects, weights, ``requires_grad``,
        training mode, hooks and attributes. The handle can no longer serve requests.
        """
        self._check_alive()
        assert self._record is not None
        self.unmerge()
        self._record.restore(self.model)
        self._record = None
        return self.model
