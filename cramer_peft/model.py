"""The adapted model: the handle that requests, merging, files and reports go through."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from cramer_peft.checks import LayerEffect, check_effect
from cramer_peft.config import RequestMaskConfig
from cramer_peft.context import NO_MASK_IN_RECOMPUTE, FixedMasks
from cramer_peft.encoders import CachedEncoder, RequestEncoder
from cramer_peft.errors import ConfigError, MergeError, RequestError
from cramer_peft.generator import RequestMaskGenerator
from cramer_peft.mask_state import MaskState
from cramer_peft.masks import Mask
from cramer_peft.merging import MergedRequest, plan_merge, stored_masks
from cramer_peft.requests import AllRequests, Requests, Strength
from cramer_peft.storage.adapter_files import check_fits, check_same_form, read_adapter
from cramer_peft.storage.hub import ADAPTER_FILES, find_folder, push_folder
from cramer_peft.tuner.registration import register
from cramer_peft.tuner.request_calls import RequestCalls


class RequestMaskModel(RequestCalls):
    """A model whose masked layers follow requests; the handle that everything goes through.

    The handle owns the generator, which is no part of the wrapped model: train, move and save the handle, or the
    ``PeftModel`` around it.

    Args:
        model: The model to adapt, in place.
        peft_config: A :class:`RequestMaskConfig`, or adapter name → configuration. Fields of the model are filled in.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Create the generator on the meta device, to be loaded later.
        state_dict: Accepted for PEFT; the configuration alone decides what is masked.
        encoder: An encoder object, in place of the one the configuration names.
    """

    # ---------------------------------------------------------------- requests

    @contextmanager
    def request(
        self, requests: AllRequests, strength: Strength = None, adapter_names: Sequence[str] | None = None
    ) -> Iterator[Self]:
        """Answer everything that runs inside the block under requests, by whatever method.

        Args:
            requests: One text, vector or mask state for the whole batch; or, one per row, a sequence of texts, vectors
                and None, a (rows, request_dim) tensor, or a :class:`MaskState` of several rows. None and blank texts
                leave a row to the frozen model. If several adapters are active, all of them get the requests; a
                dictionary gives each its own, by adapter name.
            strength: Scales the masks' deviation from the identity: one number, or one per row. None: the
                configuration's, or the mask state's own.
            adapter_names: Name of each row's adapter, ``"__base__"`` for the frozen model; None: the active adapters.

        Raises:
            RequestError: If a request or strength is unusable, or a masked layer finds another number of rows.
            ConfigError: If there is no adapter of a name in ``adapter_names``.
        """
        with self.request_context.using(self.lazy_masks(requests, strength, adapter_names)):
            yield self

    def masks_for(self, requests: AllRequests, strength: Strength = None) -> dict[str, Mask]:
        """Return the masks of ``requests`` by name of the masked module or part; empty without a request."""
        masks = self.lazy_masks(requests, strength)
        return masks.make() if masks is not None else {}

    def mask_state(self, requests: Requests, strength: Strength = None, adapter_name: str | None = None) -> MaskState:
        """Return the generator's outputs for ``requests``, to keep, save or add up; with gradients, with their graph.

        Args:
            requests: As for :meth:`request`; one row each.
            strength: As for :meth:`request`.
            adapter_name: The adapter; None: the active one.
        """
        return self.adapter(adapter_name).mask_state(requests, strength)

    def set_default_request(self, request: str | Tensor | None, adapter_name: str | None = None) -> None:
        """Store the request of every call that gives none; it is saved with the adapter.

        Args:
            request: A text, a (request_dim,) vector, or None to have none again.
            adapter_name: The adapter; None: the active one.

        Raises:
            ConfigError: If the text is blank or the vector is not of request_dim finite numbers.
            EncoderError: If the encoder fails on the text. The request that was stored stays.
        """
        self.adapter(adapter_name).set_default_request(request)
        self._sync_default()

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return two contexts that bring the request back for a checkpoint's recompute: its ``context_fn``.

        ``model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": masks.checkpoint_contexts})``,
        or ``torch.utils.checkpoint.checkpoint(…, use_reentrant=False, context_fn=masks.checkpoint_contexts)``.
        """
        context = self.request_context
        current = context.current() if self.adapters_enabled else None
        if current is None:
            return nullcontext(), context.using(NO_MASK_IN_RECOMPUTE, note=False)
        fixed = current.for_call()
        return context.using(fixed, note=False), context.using(FixedMasks(fixed.masks, for_recompute=True), note=False)

    def set_row_features(
        self, name: str, features: Tensor, adapter_name: str | None = None, check: bool = True
    ) -> None:
        """Describe the rows of a target that ``row_features`` of the configuration names; requests are refused before.

        The first call makes the parameters for this number of features: call it before an optimizer is made. The
        features are not saved with the adapter, only a few sums over them, so set them again after loading. They are
        kept as they are given: use a copy if you change them later.

        Args:
            name: The target, as in ``row_features``.
            features: One row for each output of the layer, in its order, (rows, features) floating point, finite. For
                rows described by the layer's own weight, give ``layer.weight``.
            adapter_name: The adapter; None: the active one.
            check: Check that they are those that the adapter was made with. False for rows that were added, or others.

        Raises:
            ConfigError: If the adapter describes no rows of that target.
            RequestError: If the features are of another kind, shape or width, or not finite.
            BaseModelMismatchError: If the adapter was made with other features.
        """
        self.adapter(adapter_name).set_row_features(name, features, check)

    def mask_output(self, result: Any, name: str = "", candidates: Tensor | None = None) -> Any:
        """Mask what a target of ``target_outputs`` returned without a request, by the request that applies here.

        Several requests about one result, or a training, need not run the frozen model again for each.

        Args:
            result: What the target's method returned.
            name: The target, as in ``target_outputs``.
            candidates: The rows that the result has scores of, (n,) or (rows, n) int64; None: all.

        Raises:
            ConfigError: If there is no such target.
        """
        outputs = {placed.layer.target.spelled: placed.layer for placed in self._check_loaded().outputs}
        if name not in outputs:
            raise ConfigError(f"{name!r} is no target output; there are {sorted(outputs)}.")
        return outputs[name](result, candidates)

    # ---------------------------------------------------------------- generator and encoder

    @property
    def generator(self) -> RequestMaskGenerator:
        """The active adapter's generator, the trained part."""
        return self.adapter().generator

    def encoder(self, adapter_name: str | None = None) -> CachedEncoder:
        """Return the encoder of an adapter (None: of the active one), behind its cache."""
        return self.adapter(adapter_name).encoder

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts`` by the active adapter's encoder, (texts, request_dim) float32, on the CPU."""
        return self.adapter().encode(texts)

    def set_encoder(self, encoder: RequestEncoder, adapter_name: str | None = None) -> None:
        """Use ``encoder`` for an adapter's texts (None: the active one's).

        Raises:
            EncoderError: If its vectors are not as wide as the adapter expects, or the adapter has tuned its encoder.
        """
        self.adapter(adapter_name).set_encoder(encoder)

    def check_effect(
        self, *example: Any, call: Callable[..., Any] | None = None, rows: bool = True, **kwargs: Any
    ) -> list[LayerEffect]:
        """Check that each masked layer acts, in train and in eval mode, and each of several rows by its request alone.

        Args:
            *example: Positional inputs of one call; best of several rows.
            call: The function to call; None: the model itself.
            rows: Check the rows; False for a model that takes one request for the whole batch alone.
            **kwargs: Keyword inputs.

        Raises:
            EffectError: If a layer is not called or does not change the output; it names each. Also if a row's output
                depends on another row's request.
        """
        self._check_loaded().check_in_place(self.model)
        inputs = next((value for value in (*example, *kwargs.values()) if isinstance(value, Tensor)), None)
        device, batch_dim = self.generator.head.weight.device, self.adapter().config.batch_dim
        has_rows = rows and inputs is not None and -inputs.dim() <= batch_dim < inputs.dim()
        count = inputs.shape[batch_dim] if has_rows and inputs is not None else 1
        run = functools.partial(self.model if call is None else call, *example, **kwargs)
        return check_effect(self.model, self.request_context, run, device, count, batch_dim)

    # ---------------------------------------------------------------- merging

    def merge_request(self, requests: AllRequests, strength: Strength = None, safe_merge: bool = False) -> None:
        """Fold one request into the weights: every call then follows it, at the frozen model's cost.

        New tensors replace the original ones; :meth:`unmerge` puts the original objects back.

        Args:
            requests: One text, vector or mask state of one row; a dictionary of these for several adapters.
            strength: One number; None: the configuration's, or the mask state's own.
            safe_merge: Refuse weights that would hold NaN or infinity.

        Raises:
            MergeError: If a request is merged already, or no request can be in a weight. Nothing was touched.
            RequestError: If there are several requests, or none.
        """
        self._check_merge_allowed()
        self._check_loaded().check_in_place(self.model)
        self.request_context.check_no_request("merging a request")
        masks = self.lazy_masks(requests, strength)
        if masks is None:
            raise RequestError("there is nothing to merge: the request is None, blank or of strength 0.")
        self._install_merged(plan_merge(self.model, masks.make(), self.active_names(), safe_merge))

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the stored default request of some adapters (None: of the active ones).

        Raises:
            UnsupportedError: If one has none: masks differ from request to request.
            MergeError: As for :meth:`merge_request`.
        """
        self._check_loaded()
        self._check_merge_allowed()
        self.request_context.check_no_request("merging a request")
        before = self._merged
        kept = [] if before is None else before.adapters
        names = self.active_names() if adapter_names is None else list(adapter_names)
        names = [*kept, *(name for name in names if name not in kept)]
        if names == kept:
            if kept:
                warnings.warn("All adapters are already merged, nothing to do.", stacklevel=2)
            return
        masks = stored_masks([self.adapter(name) for name in names])
        self.unmerge()
        try:
            self._install_merged(plan_merge(self.model, masks, names, safe_merge))
        except BaseException:
            if before is not None:
                self._install_merged(before)
            raise

    def _install_merged(self, merged: MergedRequest) -> None:
        merged.install(self.model, active=self.adapters_enabled)
        self._merged = merged

    def unmerge(self) -> None:
        """Put back the parameters that :meth:`merge_request` replaced; without a merged request nothing happens."""
        if self._merged is not None:
            self._merged.remove(self.model, active=self.adapters_enabled)
            self._merged = None

    unmerge_adapter = unmerge  # PEFT's name

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Leave the merged request, or else the stored default one, in the weights for good, and return the model.

        Raises:
            UnsupportedError: If there is neither.
            MergeError: If no weight can hold a masked part (the output of recurrent layers).
        """
        if self._merged is None:
            self.merge_adapter(adapter_names, safe_merge=safe_merge)
        assert self._merged is not None
        assert self._record is not None
        self._merged.check_permanent()
        self._merged = None  # for good: the original parameters are not put back
        self._record.training.clear()  # nor the training mode, as PEFT's methods leave it
        trained = self._record.trained_modules(self.model)
        model = self.unload()
        for owner, name, module in trained:
            setattr(owner, name, module)
        return model

    def unload(self) -> nn.Module:
        """Take everything off the model, and return it as it was before the first injection.

        Module objects, weights, ``requires_grad``, training mode, hooks and attributes are the earlier ones. The handle
        can no longer serve requests.
        """
        record = self._check_loaded()
        record.check_in_place(self.model)
        self.unmerge()
        record.restore(self.model)
        self._record = None
        return self.model

    # ---------------------------------------------------------------- files

    def save_pretrained(self, save_directory: str | Path, adapter_name: str | None = None, **_: Any) -> None:
        """Write ``adapter_config.json``, ``adapter_model.safetensors`` and a model card, each atomically.

        A ``README.md`` that is no card of this library stays.

        Args:
            save_directory: Folder to write to; made if it does not exist.
            adapter_name: The adapter; None: the active one.
        """
        self._check_loaded().check_in_place(self.model)
        self.adapter(adapter_name).save(Path(save_directory))

    def model_card(self, adapter_name: str | None = None) -> str:
        """Return the model card that :meth:`save_pretrained` writes, as Markdown."""
        return self.adapter(adapter_name).model_card()

    def push_to_hub(
        self,
        repo_id: str,
        adapter_name: str | None = None,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub, and return the commit's address.

        A ``README.md`` of one's own there stays. Errors of the hub are those of huggingface_hub.

        Args:
            repo_id: ``"user/name"``; the repository is made if it does not exist.
            adapter_name: The adapter; None: the active one.
            revision: A branch, made if it does not exist; None: ``main``.
            subfolder: A folder inside the repository.
            private: True: the repository is made private, and one that others can read is refused. None: as the hub
                decides.
            token: A token for the hub; None: that of ``hf auth login``.

        Raises:
            ConfigError: If the repository must be private, but is not. Nothing was uploaded.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, adapter_name)
            return push_folder(Path(folder), repo_id, ADAPTER_FILES, revision, subfolder, private, token)

    def load_adapter(
        self,
        folder: str | Path,
        adapter_name: str,
        encoder: RequestEncoder | None = None,
        check_base: bool = True,
        is_trainable: bool = False,
        revision: str | None = None,
        subfolder: str | None = None,
        local_files_only: bool = True,
    ) -> None:
        """Add an adapter from files; see :func:`cramer_peft.load_request_masks` for the arguments and the checks."""
        found = find_folder(folder, ADAPTER_FILES, revision, subfolder, local_files_only)
        stored = read_adapter(found, check_base=check_base, is_trainable=is_trainable)
        check_fits(stored, self.model, encoder)
        self.add_adapter(adapter_name, stored.config, encoder=encoder)
        try:
            self.adapter(adapter_name).fill(stored)
            if stored.config.inference_mode:
                self.set_requires_grad(adapter_name, requires_grad=False)
        except BaseException:
            self.delete_adapter(adapter_name)
            raise

    def hotswap_adapter(self, folder: str | Path, adapter_name: str | None = None, check_base: bool = True) -> None:
        """Fill an adapter with the values of another one's files, in place: a compiled model is not compiled again.

        The other adapter must have the same form of mask, layers, widths and encoder. Its default strength and its
        stored default request are taken over.

        Args:
            folder: Folder that ``save_pretrained`` wrote.
            adapter_name: The adapter to fill; None: the active one.
            check_base: Check that the fingerprint of the masked weights matches.

        Raises:
            AdapterFileError: If a file is missing, corrupt or does not fit; it lists how. Nothing was touched.
            BaseModelMismatchError: If it was made for other weights.
            MergeError: If a request is merged into the weights.
        """
        if self._merged is not None:
            raise MergeError("a request is merged into the weights: call unmerge() before swapping an adapter.")
        adapter = self.adapter(adapter_name)
        config = adapter.config
        stored = read_adapter(Path(folder), check_base=check_base, is_trainable=not config.inference_mode)
        check_same_form(stored, config, adapter.name)
        check_fits(stored, self.model, adapter.encoder.encoder if config.encoder is not None else None)
        try:
            adapter.swap_in(stored)
        finally:
            self._sync_default()


register(RequestMaskConfig, RequestMaskModel)
