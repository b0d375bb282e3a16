"""The handle as PEFT sees it: a tuner that injects, activates and removes adapters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft.peft_model import (
    PeftModel,
    TunerLayerStatus,
    TunerModelStatus,
    get_layer_status,
    get_model_status,
)
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from cramer_peft.adapter import Adapter
from cramer_peft.config import RequestMaskConfig
from cramer_peft.context import LazyMasks, RequestContext
from cramer_peft.encoders import CachedEncoder, RequestEncoder
from cramer_peft.errors import ConfigError, MergeError, RequestError, UnsupportedError
from cramer_peft.generator import make_generator
from cramer_peft.injection.default_targets import DEFAULT_TARGET_MODULES
from cramer_peft.injection.frozen_statistics import freeze_statistics
from cramer_peft.injection.outputs import place_outputs, remove_unused
from cramer_peft.injection.plan import InjectionPlan, plan_injection
from cramer_peft.injection.pretrained_methods import set_pretrained_methods
from cramer_peft.injection.record import ModelRecord, locations, masked_layers
from cramer_peft.injection.row_names import follow_row_names
from cramer_peft.layers import fused_encoder
from cramer_peft.layers.masked_layer import RequestMaskLayer, RowLayout
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.merging import MergedRequest
from cramer_peft.storage.adapter_files import (
    check_remapped,
    is_generator_key,
    keys_of_adapter,
    without_adapter_name,
)
from cramer_peft.tuner.adapter_encoder import fit_encoder
from cramer_peft.tuner.adapter_names import check_adapter_name
from cramer_peft.tuner.notices import warn_of_surprises
from cramer_peft.tuner.registration import PREFIX


class RequestMaskTuner(BaseTuner):
    """The methods that PEFT calls; :class:`~cramer_peft.RequestMaskModel` adds those that people call.

    ``request_context`` tells the layers which masks apply. The others hold, by adapter, the frozen encoders that were
    made or given so far, the generators and the tuned encoders.
    """

    uses_shared_state = True
    prefix = PREFIX
    tuner_layer_cls = RequestMaskLayer
    target_module_mapping = DEFAULT_TARGET_MODULES

    peft_config: dict[str, RequestMaskConfig]
    model: nn.Module
    request_mask_generator: nn.ModuleDict
    request_mask_encoder: nn.ModuleDict

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
        self.request_context = RequestContext()
        self.request_encoders: dict[str, CachedEncoder] = {}
        if encoder is not None:
            self.request_encoders[adapter_name] = CachedEncoder(encoder)
        self._record: ModelRecord | None = None
        self._plan: InjectionPlan | None = None
        self._merged: MergedRequest | None = None
        if (host := getattr(model, "peft_config", None)) is not None:  # PEFT would write over entries of another method
            self.peft_config = configs
        super().__init__(model, configs, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage, state_dict=state_dict)
        if host is not None:
            model.peft_config = host

    # ---------------------------------------------------------------- adapters

    def adapter(self, adapter_name: str | None = None) -> Adapter:
        """Return an adapter by name; None: the active one, the first if several are.

        Raises:
            ConfigError: If there is no such adapter.
        """
        return Adapter(self, self.active_names()[0] if adapter_name is None else adapter_name)

    def active_names(self) -> list[str]:
        """Return the names of the active adapters, at least one.

        Raises:
            ConfigError: If none is active, or the masks were unloaded.
        """
        self._check_loaded()
        names = list(self.active_adapters)
        if not names:
            raise ConfigError("no adapter is active: call set_adapter(name).")
        return names

    @property
    def adapters_enabled(self) -> bool:
        """True if masks are on; False inside :meth:`disable_adapter`."""
        return self.request_context.enabled

    def _check_loaded(self) -> ModelRecord:
        if self._record is None:
            raise ConfigError("these request masks have been unloaded: inject or load them again.")
        return self._record

    @property
    def accepts_loss_kwargs(self) -> bool:
        """True if ``Trainer`` may pass loss keywords to the wrapped model, as if it looked at the model itself."""
        own = getattr(self.model, "accepts_loss_kwargs", None)
        if own is not None:
            return bool(own)
        parameters = inspect.signature(self.model.forward).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)

    # ---------------------------------------------------------------- injection

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
        given = self.peft_config[adapter_name]
        check_adapter_name(adapter_name, model, given)
        if self._merged is not None:
            raise MergeError("a request is merged into the weights: call unmerge() before adding an adapter.")
        plan = plan_injection(model, given.as_given())
        if plan.unmatched or given.modules_to_save:
            warn_of_surprises(model, given, plan)
        config, tuned = fit_encoder(plan.config, adapter_name, self.request_encoders)
        device = next((x.device for x in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        with torch.inference_mode(False), torch.device("meta") if low_cpu_mem_usage else device:
            generator = make_generator(config, plan.specs)
        generator.train(model.training)
        flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        first, kept = self._record is None, 0 if self._record is None else len(self._record.replaced)
        record = self._start_record(model) if self._record is None else self._record
        self.peft_config[adapter_name] = config
        self.request_mask_generator[adapter_name] = generator
        if tuned is not None:
            self.request_mask_encoder[adapter_name] = tuned.to(device)
        self._plan, self._places = plan, locations(model)
        try:
            with record.foreign_kept():
                super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
            record.freeze_foreign()
            # Before the root's forward is replaced, because the root may be a fused encoder layer itself.
            record.unfused += fused_encoder.install(model, self.request_context)
            if first:
                self._replace_root_forward(model)
            if config.target_outputs:
                outputs = ((target.module, target.output, target.parts) for target in plan.targets if target.output)
                layout, active = RowLayout(config.batch_dim, config.batch_folding), list(self.active_adapters)
                place_outputs(model, outputs, record.outputs, adapter_name, layout, self.request_context, active)
            _restore_flags([] if first else flags)  # PEFT keeps requires_grad only for parameters inside the model
            record.methods += freeze_statistics(model) + set_pretrained_methods(model)
            if config.modules_to_save:
                follow_row_names(record.own_layers(model), self.request_context)
            self.adapter(adapter_name).fill_default_request()
            self._sync_default()
            self.peft_config[adapter_name] = given.filled_in(config)
        except BaseException:
            self._roll_back(adapter_name, first, kept)
            _restore_flags(flags)
            raise
        finally:
            self._plan, self._places = None, {}

    def _start_record(self, model: nn.Module) -> ModelRecord:
        """Record the model as it is, before the first adapter changes anything."""
        self.request_mask_generator = nn.ModuleDict()
        self.request_mask_encoder = nn.ModuleDict()
        self.training = model.training
        self.request_context.activated = self._layers_activated
        self.request_context.generators = self.request_mask_generator
        self._record = ModelRecord.of(model)
        return self._record

    def _roll_back(self, adapter_name: str, first: bool, kept: int) -> None:
        assert self._record is not None
        if first:
            self._record.restore(self.model)
            self._record = None
            self.request_encoders.pop(adapter_name, None)
        else:
            self._record.undo(self.model, adapter_name, kept)
            Adapter(self, adapter_name).remove()

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
        layer = wrapper(target, current_key, self.request_context)
        layer.update_layer(adapter_name, self._plan.parts_of(current_key), layout)
        # In all its places, because a module that the model uses twice must be masked in both.
        self._record.replace(self._places[id(target)], layer)

    def _prepare_adapter_config(self, peft_config: Any, _: Any) -> Any:
        return peft_config  # the plan has filled in everything

    def _replace_root_forward(self, model: nn.Module) -> None:
        """Let calls of the root take a request; the handle overrides this."""
        raise NotImplementedError

    # ---------------------------------------------------------------- active adapters

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter or several the active ones; only their generators are trainable.

        On one weight, masks multiply entrywise and deviations of ``low_rank`` add up: W * M_1 * M_2 * (1 + D_3 + D_4).

        Raises:
            ConfigError: If there is no such adapter, or several expect the rows of one module in different
                dimensions.
        """
        self._check_loaded()
        names = [adapter_name] if isinstance(adapter_name, str) else list(dict.fromkeys(adapter_name))
        configs = [self.adapter(name).config for name in names]
        if len({(config.batch_dim, config.batch_folding) for config in configs}) > 1:
            raise ConfigError(
                f"the adapters {names} differ in batch_dim or batch_folding: they cannot be active at once."
            )
        with self._check_loaded().foreign_kept():
            super().set_adapter(names, inference_mode=inference_mode)
        for name in self.request_mask_generator:
            self.adapter(name).requires_grad_(name in names and not inference_mode)
        self._sync_default()

    def add_adapter(self, adapter_name: str, config: RequestMaskConfig, encoder: RequestEncoder | None = None) -> None:
        """Add another adapter, inactive; it may mask other modules and have another encoder.

        Raises:
            ConfigError: If there is an adapter of that name.
            TargetModuleError: As for :func:`inject_request_masks`.
        """
        self._check_loaded()
        if not isinstance(config, RequestMaskConfig):
            raise ConfigError(f"config must be a RequestMaskConfig, found {type(config).__name__}.")
        if adapter_name in self.peft_config:
            raise ConfigError(
                f"there is an adapter {adapter_name!r} already: choose another name, or delete_adapter first."
            )
        if encoder is not None:
            self.request_encoders[adapter_name] = CachedEncoder(encoder)
        self.peft_config[adapter_name] = config.copy()
        try:
            self.inject_adapter(self.model, adapter_name)
        except BaseException:
            self.peft_config.pop(adapter_name, None)
            self.request_encoders.pop(adapter_name, None)
            raise

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to mix adapters: masks are not linear in a generator's weights."""
        raise UnsupportedError(
            "add_weighted_adapter mixes weights, in which masks are not linear: the mix would follow neither adapter. "
            "Make several adapters active by set_adapter([…]), or add up mask states."
        )

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
        adapter, active = Adapter(self, adapter_name), list(self.active_adapters)
        with self._check_loaded().foreign_kept():
            super().delete_adapter(adapter_name)
        adapter.remove()
        remove_unused(self._check_loaded().outputs)
        if adapter_name in active and self.peft_config:
            names = [name for name in active if name != adapter_name] or [next(iter(self.peft_config))]
            self.set_adapter(names, inference_mode=all(self.peft_config[name].inference_mode for name in names))
        self._sync_default()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Turn gradients of the adapters' generators on or off."""
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.peft_config:
                self.adapter(name).requires_grad_(requires_grad)

    def _layers_activated(self, names: list[str]) -> None:
        """Take over the active adapters that PEFT has set on a layer, one layer at a time."""
        self.active_adapter = names
        self._sync_default()

    def _sync_default(self) -> None:
        """Let calls without a request follow the stored default request of the active adapters, if one has any."""
        generators = [self.request_mask_generator[name] for name in self.active_adapters]
        stored = any(generator.default_request is not None for generator in generators)
        self.request_context.default = self._default_masks if stored else None

    def _default_masks(self) -> LazyMasks | None:
        raise NotImplementedError

    # ---------------------------------------------------------------- switching masks off

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        # Not by PEFT's own method: it would switch the layers of other PEFT methods on the model, too.
        for layer in [] if self._record is None else self._record.own_layers(self.model):
            layer.enable_adapters(enabled)  # type: ignore[operator, unused-ignore]
        if not enabled:
            self.request_context.note(None)
        if self._merged is not None and enabled != self.request_context.enabled:
            (self._merged.put if enabled else self._merged.take_out)()
        self.request_context.enabled = enabled

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Use the frozen model inside the block, whatever request applies outside."""
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
        with self.request_context.naming_rows(names, beams if isinstance(beams, int) and beams > 1 else 1):
            yield

    # ---------------------------------------------------------------- reports, counted by PEFT

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the numbers of trainable parameters and of all."""
        trainable, total = PeftModel.get_nb_trainable_parameters(self)
        return int(trainable), int(total)

    def print_trainable_parameters(self) -> None:
        """Print both numbers and their ratio."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """Return the state of each masked layer, as PEFT reports it."""
        return list(get_layer_status(self))

    def get_model_status(self) -> TunerModelStatus:
        """Return the state of all masked layers together, as PEFT reports it."""
        return replace(
            get_model_status(self),
            base_model_type=type(self.model).__name__,
            adapter_model_type=type(self).__name__,
            peft_types={name: config.peft_type.value for name, config in self.peft_config.items()},
        )

    # ---------------------------------------------------------------- files, by PEFT

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        half = (torch.float16, torch.bfloat16)
        base = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        for parameter in self.request_mask_generator[adapter_name].parameters():
            if autocast_adapter_dtype and parameter.dtype in half:
                parameter.data = parameter.data.float()  # masks in half precision would be coarse
            elif not autocast_adapter_dtype and base in half:
                parameter.data = parameter.data.to(base)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor], **_: Any
    ) -> dict[str, Tensor]:
        # PEFT has dropped the keys that hold another adapter's name, such as "weight". It reads this object further.
        kept = keys_of_adapter(model.state_dict(), adapter_name)
        state_dict.update({key: value for key, value in kept.items() if key not in state_dict})
        return {key: value for key, value in state_dict.items() if is_generator_key(key, adapter_name)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return without_adapter_name(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        check_remapped(model, adapter_name, remapped)
        return remapped


def _restore_flags(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
