"""The adapted model: one PEFT tuner behind both doors, ours and ``get_peft_model``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cramer_peft import adapter_files
from cramer_peft.carrier import RequestCarrier
from cramer_peft.config import RequestMaskConfig
from cramer_peft.effect import LayerEffect, check_effect
from cramer_peft.encoders import CachedEncoder, RequestEncoder
from cramer_peft.errors import ConfigError, MergeError, RequestError
from cramer_peft.forward import intercept
from cramer_peft.generator import make_generator
from cramer_peft.handle.merging import HandleMerging
from cramer_peft.hotswap import hotswap
from cramer_peft.layers import fastpath
from cramer_peft.layers.base import RequestMaskLayer, RowLayout
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.leftovers import ModelRecord, locations, masked_layers
from cramer_peft.model_card import model_card, write_model_card
from cramer_peft.registration import PREFIX
from cramer_peft.row_names import follow_names, row_adapters
from cramer_peft.status import count_parameters, describe_parameters, layer_status, model_status
from cramer_peft.targets import DEFAULT_TARGET_MODULES, InjectionPlan, plan_injection

if TYPE_CHECKING:
    from peft.peft_model import TunerLayerStatus, TunerModelStatus


# Adapter names that would collide with parts of the keys under which PEFT files an adapter's tensors.
_RESERVED_NAMES = {
    "head",
    "trunk",
    "default_request",
    "model",
    "base_model",
    "base_layer",
    "original_module",
    "modules_to_save",
}


class RequestMaskModel(HandleMerging):
    """A model whose masked layers follow requests; the handle that everything goes through.

    It owns the generator, which lives here and not in the wrapped model: train, move and save this
    handle (or the ``PeftModel`` around it), not the wrapped model alone.

    Args:
        model: The model to adapt, in place.
        peft_config: A :class:`RequestMaskConfig`, or adapter name → configuration. What depends on the model
            is filled in.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Whether to create the generator on the meta device, to be loaded later.
        state_dict: Accepted for PEFT; the configuration alone decides what is masked.
        encoder: An encoder object, in place of the one the configuration names.
    """

    uses_shared_state = True
    prefix = PREFIX
    tuner_layer_cls = RequestMaskLayer
    target_module_mapping = DEFAULT_TARGET_MODULES

    def __init__(
        self,
        model: nn.Module,
        peft_config: RequestMaskConfig | dict[str, RequestMaskConfig],
        adapter_name: str = "default",
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
        encoder: RequestEncoder | None = None,
    ) -> None:
        if any(True for _ in masked_layers(model)):
            raise ConfigError(
                f"{type(model).__name__} has request masks already. Call add_adapter(name, config) on its handle, or "
                "unload() first."
            )
        configs = {adapter_name: peft_config} if isinstance(peft_config, RequestMaskConfig) else dict(peft_config)
        self._encoders = {}
        self._record = None
        self._plan: InjectionPlan | None = None
        self._merged = None
        self.carrier = RequestCarrier()
        if encoder is not None:
            self._encoders[adapter_name] = CachedEncoder(encoder)
        super().__init__(model, configs, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage, state_dict=state_dict)

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether ``Trainer`` may pass the wrapped model loss keywords, as it would find out of the model itself."""
        own = getattr(self.model, "accepts_loss_kwargs", None)
        if own is not None:
            return bool(own)
        parameters = inspect.signature(self.model.forward).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)

    def check_effect(self, *example: Any, call: Callable[..., Any] | None = None, **kwargs: Any) -> list[LayerEffect]:
        """Assert that every masked layer is really called and moves the output, in train and in eval mode.

        Args:
            *example: Positional inputs of one call.
            call: What to call; None: the model itself.
            **kwargs: Keyword inputs.

        Returns:
            What each layer did, in each mode.

        Raises:
            EffectError: If a layer is not called or does not move the output; it names each.
        """
        self._check_alive()
        return check_effect(self, self.model if call is None else call, example, kwargs)

    # ---------------------------------------------------------------- PEFT

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Add an adapter's masks and its generator; on any failure the model is left as it was.

        Raises:
            TargetModuleError: If the configuration matches nothing, or something that cannot be masked.
            BaseModelMismatchError: If the configuration was made for other weights.
            ConfigError: If the adapter's name cannot be used.
        """
        _check_adapter_name(adapter_name)
        if self._merged is not None:
            raise MergeError("a request is merged into the weights: call unmerge() before adding an adapter.")
        given = self.peft_config[adapter_name]
        plan = plan_injection(model, given.as_given())
        config = self._with_encoder(plan.config, adapter_name)
        device = next(iter(model.parameters())).device
        with torch.device("meta") if low_cpu_mem_usage else device:
            generator = make_generator(config, plan.specs)
        tuned = self._make_tuned_encoder(config, adapter_name)
        if tuned is not None:
            own = self._encoders[adapter_name].encoder
            adapter_files.check_encoder_weights(config, own)
            config = replace(config, encoder_fingerprint=adapter_files.encoder_fingerprint(own))
        generator.train(model.training)
        first = self._record is None
        kept = 0 if self._record is None else len(self._record.replaced)
        flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        if self._record is None:
            self.request_mask_generator = nn.ModuleDict()
            self.request_mask_encoder = nn.ModuleDict()
            self._record = ModelRecord.of(model)
            self.training = model.training
            self.carrier.activated = self._layers_activated
            self.carrier.generators = self.request_mask_generator
        self.peft_config[adapter_name] = config
        self.request_mask_generator[adapter_name] = generator
        if tuned is not None:
            self.request_mask_encoder[adapter_name] = tuned.to(device)
        self._plan = plan
        self._places = locations(model)
        try:
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype, low_cpu_mem_usage=low_cpu_mem_usage
            )
            self._record.unfused += fastpath.install(model, self.carrier)  # first: the root may be such a layer
            if first:
                intercept(self, model)
            else:  # PEFT keeps these flags for parameters inside the model alone
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)
            follow_names(model, self.carrier)
            self._fill_default_request(adapter_name)
            self.peft_config[adapter_name] = given.filled_in(config)
        except BaseException:
            self._roll_back(adapter_name, first, kept)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            raise
        finally:
            self._plan = None
            self._places = {}

    def _roll_back(self, adapter_name: str, first: bool, kept: int) -> None:
        assert self._record is not None
        if first:
            self._record.restore(self.model)
            self._record = None
        else:
            self._record.undo(self.model, adapter_name, kept)
            del self.request_mask_generator[adapter_name]
            if adapter_name in self.request_mask_encoder:
                del self.request_mask_encoder[adapter_name]
            del self.peft_config[adapter_name]
        self._encoders.pop(adapter_name, None)

    def _create_and_replace(
        self,
        peft_config: RequestMaskConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert self._plan is not None
        assert self._record is not None
        layout = RowLayout(peft_config.batch_dim, peft_config.batch_folding)
        if isinstance(target, RequestMaskLayer):
            target.update_layer(adapter_name, self._plan.parts_of(current_key), layout)
            return
        wrapper = wrapper_for(target)
        assert wrapper is not None  # the plan has refused every module without one
        layer = wrapper(target, current_key, self.carrier)
        layer.update_layer(adapter_name, self._plan.parts_of(current_key), layout)
        # Everywhere, because a module that the model uses in two places must be masked in both.
        self._record.replace(self._places[id(target)], layer)

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        return peft_config  # the plan has filled in everything

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter, or several, the active ones; their generators alone are trainable.

        Where several mask the same weight, their masks multiply entrywise and the deviations of
        ``low_rank`` add up: W * M_1 * M_2 * (1 + D_3 + D_4).

        Raises:
            ConfigError: If there is no such adapter, or several expect the rows of one module in different
                dimensions.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(dict.fromkeys(adapter_name))
        for name in names:
            self._named(name)
        layouts = {(self.peft_config[name].batch_dim, self.peft_config[name].batch_folding) for name in names}
        if len(layouts) > 1:
            raise ConfigError(
                f"the adapters {names} differ in batch_dim or batch_folding: they cannot be active at once."
            )
        super().set_adapter(names, inference_mode=inference_mode)
        for own in (self.request_mask_generator, self.request_mask_encoder):
            for name, module in own.items():
                module.requires_grad_(name in names and not inference_mode)
        self._sync_default()

    def add_adapter(self, adapter_name: str, config: RequestMaskConfig, encoder: RequestEncoder | None = None) -> None:
        """Add another adapter, inactive; it may mask other modules and have another encoder.

        Raises:
            ConfigError: If there is an adapter of that name.
            TargetModuleError: As for :func:`inject_request_masks`.
        """
        self._check_alive()
        if not isinstance(config, RequestMaskConfig):
            raise ConfigError(f"config must be a RequestMaskConfig, found {type(config).__name__}.")
        if adapter_name in self.peft_config:
            raise ConfigError(
                f"there is an adapter {adapter_name!r} already: choose another name, or delete_adapter first."
            )
        if encoder is not None:
            self._encoders[adapter_name] = CachedEncoder(encoder)
        self.peft_config[adapter_name] = config.copy()
        try:
            self.inject_adapter(self.model, adapter_name)
        except BaseException:
            self.peft_config.pop(adapter_name, None)
            self._encoders.pop(adapter_name, None)
            raise

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter and its generator; if it alone was active, the oldest of the others takes its place.

        Raises:
            ConfigError: If there is no such adapter.
            MergeError: If its request is merged into the weights.
        """
        if adapter_name not in self.peft_config:
            raise ConfigError(f"Adapter {adapter_name} does not exist; there are {sorted(self.peft_config)}.")
        if self._merged is not None and adapter_name in self._merged.adapters:
            raise MergeError(
                f"Cannot delete adapter(s) {[adapter_name]} while they are merged. Please unmerge them first."
            )
        active = list(self.active_adapters)
        super().delete_adapter(adapter_name)
        del self.request_mask_generator[adapter_name]
        if adapter_name in self.request_mask_encoder:
            del self.request_mask_encoder[adapter_name]
        if adapter_name in active and self.peft_config:
            names = [name for name in active if name != adapter_name] or [next(iter(self.peft_config))]
            self.set_adapter(names, inference_mode=all(self.peft_config[name].inference_mode for name in names))
        self._encoders.pop(adapter_name, None)
        self._sync_default()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Turn gradients of the adapters' generators on or off."""
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for own in (self.request_mask_generator, self.request_mask_encoder):
                if name in own:
                    own[name].requires_grad_(requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        own = (self.request_mask_generator, self.request_mask_encoder)
        flags = [(p, p.requires_grad) for module in own for p in module.parameters()]
        super()._enable_adapter_layers(enabled)
        if not enabled:
            self.carrier.note(None)
        if self._merged is not None and enabled != self.carrier.enabled:
            (self._merged.put if enabled else self._merged.take_out)()
        self.carrier.enabled = enabled
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The frozen model inside the block, whatever request is in force."""
        enabled = self.adapters_enabled
        self._enable_adapter_layers(False)
        try:
            yield
        finally:
            self._enable_adapter_layers(enabled)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None or not self.adapters_enabled:
            yield
            return
        if self.training:
            raise RequestError("Cannot pass `adapter_names` when the model is in training mode.")
        if self._merged is not None:
            raise MergeError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        beams = kwargs.get("num_beams")
        with row_adapters(self.carrier, names, beams if isinstance(beams, int) and beams > 1 else 1):
            yield

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        half = (torch.float16, torch.bfloat16)
        base = _float_dtype(self.model)
        for parameter in self.request_mask_generator[adapter_name].parameters():
            if autocast_adapter_dtype and parameter.dtype in half:
                parameter.data = parameter.data.float()  # gates in half precision would be coarse
            elif not autocast_adapter_dtype and base in half:
                parameter.data = parameter.data.to(base)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return adapter_files.without_adapter_name(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        adapter_files.check_remapped(model, adapter_name, remapped)
        return remapped

    # ---------------------------------------------------------------- files

    def save_pretrained(self, save_directory: str | Path, adapter_name: str | None = None, **_: Any) -> None:
        """Write ``adapter_config.json``, ``adapter_model.safetensors`` and a model card, each atomically.

        A ``README.md`` that is there and not a card of ours stays.

        Args:
            save_directory: Folder to write to; made if it does not exist.
            adapter_name: Which adapter; None: the active one.
        """
        self._check_alive()
        folder, name = Path(save_directory), self._named(adapter_name)
        adapter_files.save_adapter(self, folder, name)
        write_model_card(self, folder, name)

    def model_card(self, adapter_name: str | None = None) -> str:
        """The model card that :meth:`save_pretrained` writes, as Markdown."""
        return model_card(self, self._named(adapter_name))

    def load_adapter(
        self,
        folder: str | Path,
        adapter_name: str,
        encoder: RequestEncoder | None = None,
        check_base: bool = True,
        is_trainable: bool = False,
    ) -> None:
        """Add an adapter from files; see :func:`cramer_peft.load_request_masks` for what is checked."""
        stored = adapter_files.read_adapter(Path(folder), check_base=check_base, is_trainable=is_trainable)
        adapter_files.check_fits(stored, self.model, encoder)
        self.add_adapter(adapter_name, stored.config, encoder=encoder)
        try:
            adapter_files.fill_adapter(self, adapter_name, stored)
        except BaseException:
            self.delete_adapter(adapter_name)
            raise

    def hotswap_adapter(self, folder: str | Path, adapter_name: str | None = None, check_base: bool = True) -> None:
        """Fill an adapter with the values of another one's files, in place: a compiled model is not compiled again.

        The files must be of an adapter of the same form: gate, layers, widths and encoder. Its default strength
        and its stored default request are taken over.

        Args:
            folder: Where ``save_pretrained`` wrote the files.
            adapter_name: Which adapter to fill; None: the active one.
            check_base: Whether the fingerprint of the masked weights must match.

        Raises:
            AdapterFileError: If a file is missing or corrupt, or is of an adapter of another form; it lists what
                differs. Nothing was touched.
            BaseModelMismatchError: If it was made for other weights.
            MergeError: If a request is merged into the weights.
        """
        hotswap(self, self._named(adapter_name), Path(folder), check_base)

    # ---------------------------------------------------------------- status

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable parameters and of all."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print both numbers and their ratio."""
        print(describe_parameters(self))

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """The state of each masked layer, as PEFT reports it."""
        return layer_status(self)

    def get_model_status(self) -> TunerModelStatus:
        """The state of all masked layers together, as PEFT reports it."""
        return model_status(self)


def _check_adapter_name(name: str) -> None:
    if (
        not name
        or set(name) & set("./\\\0")
        or name.isdigit()
        or name in _RESERVED_NAMES
        or hasattr(nn.ModuleDict(), name)
    ):
        raise ConfigError(
            f"adapter name {name!r} cannot be used: it must not be empty, a number, hold a dot, slash or NUL, or be a "
            "name that the saved tensors' keys use."
        )


def _float_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's first floating-point parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
