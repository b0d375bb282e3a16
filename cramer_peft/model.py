"""The adapted model: one PEFT tuner behind both doors, ours and ``get_peft_model``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from cramer_peft import adapter_files
from cramer_peft.active import GateInputs, GateSource
from cramer_peft.carrier import RequestCarrier
from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import CachedEncoder, RequestEncoder, make_encoder
from cramer_peft.errors import BaseModelMismatchError, ConfigError, EncoderError, RequestError, UnsupportedError
from cramer_peft.forward import intercept
from cramer_peft.gates import LayerGate, LayerTensors, make_gate
from cramer_peft.generator import RequestMaskGenerator
from cramer_peft.layers.base import RequestMaskLayer
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.leftovers import ModelRecord, locations, masked_layers
from cramer_peft.registration import PREFIX
from cramer_peft.requests import Requests, Strength, batch_requests, batch_strength
from cramer_peft.state import MaskState
from cramer_peft.targets import DEFAULT_TARGET_MODULES, InjectionPlan, plan_injection

# Adapter names that would collide with parts of the keys under which PEFT files an adapter's tensors.
_RESERVED_NAMES = {"head", "trunk", "model", "base_model", "base_layer", "original_module", "modules_to_save"}


class RequestMaskModel(BaseTuner):
    """A model whose masked layers follow requests; the handle that everything goes through.

    It owns the generator, which lives here and not in the wrapped model: train, move and save this
    handle (or the ``PeftModel`` around it), not the wrapped model alone.

    Args:
        model: The model to adapt, in place.
        peft_config: A :class:`RequestMaskConfig`, or adapter name → configuration. It is copied.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Whether to create the generator on the meta device, to be loaded later.
        state_dict: Accepted for PEFT; the configuration alone decides what is masked.
        encoder: An encoder object, in place of the one the configuration names.
    """

    uses_shared_state = True
    prefix = PREFIX
    tuner_layer_cls = RequestMaskLayer
    target_module_mapping = DEFAULT_TARGET_MODULES

    peft_config: dict[str, RequestMaskConfig]
    model: nn.Module

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
        self._encoders: dict[str, CachedEncoder] = {}
        self._record: ModelRecord | None = None
        self._plan: InjectionPlan | None = None
        self._enabled = True
        self.carrier = RequestCarrier()
        if encoder is not None:
            self._encoders[adapter_name] = CachedEncoder(encoder)
        super().__init__(model, configs, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage, state_dict=state_dict)

    # ---------------------------------------------------------------- requests

    @contextmanager
    def request(self, requests: Requests | MaskState, strength: Strength = None) -> Iterator[RequestMaskModel]:
        """Put requests in force for everything that runs inside the block, by whatever method.

        Args:
            requests: One text, vector or mask state for the whole batch; or one per row: a sequence of
                texts, vectors and None, a (rows, request_dim) tensor, or a :class:`MaskState` of several
                rows. None and blank texts leave a row to the frozen model.
            strength: Scales the masks' deviation from the identity: one number, or one per row. None: the
                configuration's, or the mask state's own.

        Raises:
            RequestError: If a request or strength is unusable; or, in a masked layer, if there are not as
                many requests as rows.
        """
        with self.carrier.carrying(self.gate_source(requests, strength)):
            yield self

    def mask_state(self, requests: Requests, strength: Strength = None) -> MaskState:
        """What the gates of ``requests`` are made from, to keep, save or look at.

        With gradients on, the tensors carry the graph back to the generator.

        Args:
            requests: As for :meth:`request`; one row each.
            strength: As for :meth:`request`.
        """
        name, generator, config = self._active()
        batch = batch_requests(requests, generator.request_dim, self.encode)
        rows = len(batch.texts) if batch else _rows_of(requests)
        device = generator.head.weight.device
        vectors = batch.vectors if batch else torch.zeros(rows, generator.request_dim)
        given = batch_strength(strength, config.strength, rows, shared=False)
        active = torch.ones(rows, dtype=torch.bool) if batch else torch.zeros(rows, dtype=torch.bool)
        return MaskState(
            tensors=generator(vectors.to(device)),
            active=(active if batch is None or batch.active is None else batch.active).to(device),
            strength=(torch.ones(rows) if given is None else given).to(device),
            gate=config.gate,
            texts=batch.texts if batch else (None,) * rows,
            adapter=name,
            encoder=config.encoder,
            base_fingerprint=config.base_fingerprint,
        )

    def gates(self, requests: Requests | MaskState, strength: Strength = None) -> dict[str, LayerGate]:
        """The gates that ``requests`` give each masked layer, by module name; empty without a request."""
        source = self.gate_source(requests, strength)
        return source.make() if source is not None else {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of ``texts`` by the active adapter's encoder, (texts, request_dim) float32, on the CPU.

        Raises:
            EncoderError: If the adapter has no encoder, or it fails on a text.
        """
        return self.encoder().encode(texts)

    def encoder(self, adapter_name: str | None = None) -> CachedEncoder:
        """The encoder of an adapter (None: of the active one), behind its cache."""
        name = adapter_name or self._active()[0]
        if name not in self._encoders:
            config = self.peft_config[name]
            if config.encoder is None:
                raise EncoderError(
                    f"adapter {name!r} has no request encoder (request_dim={config.request_dim}): give requests as "
                    "vectors, name an encoder in its configuration, or call set_encoder(encoder)."
                )
            self._encoders[name] = self._checked(
                CachedEncoder(make_encoder(config.encoder, config.encoder_options)), config
            )
        return self._encoders[name]

    def set_encoder(self, encoder: RequestEncoder, adapter_name: str | None = None) -> None:
        """Use ``encoder`` for an adapter's texts (None: the active one's).

        Raises:
            EncoderError: If its vectors are not as wide as the adapter expects.
        """
        name = adapter_name or self._active()[0]
        self._encoders[name] = self._checked(CachedEncoder(encoder), self.peft_config[name])
        self.peft_config[name].encoder = encoder.name

    @property
    def generator(self) -> RequestMaskGenerator:
        """The active adapter's generator, the trained part."""
        return self._active()[1]

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether ``Trainer`` may pass the wrapped model loss keywords, as it would find out of the model itself."""
        own = getattr(self.model, "accepts_loss_kwargs", None)
        if own is not None:
            return bool(own)
        parameters = inspect.signature(self.model.forward).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)

    @property
    def adapters_enabled(self) -> bool:
        """Whether masks are on at all; False inside :meth:`disable_adapter`."""
        return self._enabled

    def gate_source(self, requests: Requests | MaskState, strength: Strength = None) -> GateSource | None:
        """The gates of some requests, not made yet; None where there is nothing to mask."""
        _, generator, config = self._active()
        if isinstance(requests, MaskState):
            return self._source_of_state(requests, strength)
        batch = batch_requests(requests, generator.request_dim, self.encode)
        if batch is None:
            return None
        rows = batch.vectors.shape[0]
        scale = batch_strength(strength, config.strength, rows, batch.shared)
        if _is_zero(strength if strength is not None else config.strength):
            return None
        shared = batch.shared and (scale is None or scale.shape[0] == rows)
        vectors = batch.vectors.to(generator.head.weight.device)
        return self._source(lambda: generator(vectors), rows, shared, scale, batch.active)

    def _source_of_state(self, state: MaskState, strength: Strength) -> GateSource | None:
        _, generator, config = self._active()
        _check_state(state, generator, config)
        rows, shared = len(state), len(state) == 1
        scale = state.strength if strength is None else batch_strength(strength, 1.0, rows, shared)
        if _is_zero(strength):
            return None
        return self._source(lambda: state.tensors, rows, shared, scale, state.active)

    def _source(
        self, make_tensors: Any, rows: int, shared: bool, scale: Tensor | None, active: Tensor | None
    ) -> GateSource:
        _, generator, _ = self._active()
        device = generator.head.weight.device
        scale = None if scale is None else scale.to(device)
        active = None if active is None else active.to(device)
        if scale is not None:
            if (
                not generator.gate.has_strength
                and not torch.compiler.is_compiling()
                and not bool(((scale == 0) | (scale == 1)).all())
            ):
                raise RequestError(f"gate={generator.gate.name!r} has no strength: only 0 and 1 can be given.")
            active = scale != 0 if active is None else active & (scale != 0)
            scale = scale * active
            rows = max(rows, scale.shape[0])
        elif active is not None:
            scale = active.to(torch.float32)
        if torch.is_grad_enabled():
            self.carrier.used_with_gradients = True
        inputs = GateInputs(rows, shared and rows == 1, scale, active)
        return GateSource(make_tensors, generator.gate, inputs, generator, self.model)

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
        plan = plan_injection(model, self.peft_config[adapter_name])
        config = self._with_encoder(plan.config, adapter_name)
        device = plan.targets[0].module.weight.device
        with torch.device("meta") if low_cpu_mem_usage else torch.device(device):  # type: ignore[arg-type]
            assert config.request_dim is not None
            generator = RequestMaskGenerator(
                config.request_dim,
                plan.specs,
                make_gate(config),
                config.generator_width,
                identity=config.init_weights,
                normalize=config.normalize_requests,
            )
        generator.train(model.training)
        first = self._record is None
        kept = 0 if self._record is None else len(self._record.replaced)
        flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        if self._record is None:
            self.request_mask_generator = nn.ModuleDict()
            self._record = ModelRecord.of(model)
            self.training = model.training
        self.peft_config[adapter_name] = config
        self.request_mask_generator[adapter_name] = generator
        self._plan = plan
        self._places = locations(model)
        try:
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype, low_cpu_mem_usage=low_cpu_mem_usage
            )
            if first:
                intercept(self, model)
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
        if isinstance(target, RequestMaskLayer):
            target.update_layer(adapter_name, self._plan.specs[current_key], peft_config.batch_dim)
            return
        wrapper = wrapper_for(target)
        assert wrapper is not None  # the plan has refused every module without one
        layer = wrapper(target, current_key, self.carrier)
        layer.update_layer(adapter_name, self._plan.specs[current_key], peft_config.batch_dim)
        # Everywhere, because a module that the model uses in two places must be masked in both.
        self._record.replace(self._places[id(target)], layer)

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        return peft_config  # the plan has filled in everything

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one; its generator alone is trainable.

        Raises:
            ConfigError: If there is no such adapter.
            UnsupportedError: If several are named.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) > 1:
            raise UnsupportedError(f"one adapter can be active at a time, found {names}. Switch by set_adapter(name).")
        for name in names:
            if name not in self.peft_config:
                raise ConfigError(f"there is no adapter {name!r}; there are {sorted(self.peft_config)}.")
        super().set_adapter(names, inference_mode=inference_mode)
        for name, generator in self.request_mask_generator.items():
            generator.requires_grad_(name in names and not inference_mode)

    def add_adapter(self, adapter_name: str, config: RequestMaskConfig, encoder: RequestEncoder | None = None) -> None:
        """Add another adapter, inactive; it may mask other modules and have another encoder.

        Raises:
            ConfigError: If there is an adapter of that name.
            TargetModuleError: As for :func:`inject_request_masks`.
        """
        self._check_alive()
        if adapter_name in self.peft_config:
            raise ConfigError(
                f"there is an adapter {adapter_name!r} already: choose another name, or delete_adapter first."
            )
        if encoder is not None:
            self._encoders[adapter_name] = CachedEncoder(encoder)
        self.peft_config[adapter_name] = config
        try:
            self.inject_adapter(self.model, adapter_name)
        except BaseException:
            self.peft_config.pop(adapter_name, None)
            self._encoders.pop(adapter_name, None)
            raise

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter and its generator; if it was active, the oldest of the others takes its place."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        del self.request_mask_generator[adapter_name]
        if was_active and self.peft_config:
            name, config = next(iter(self.peft_config.items()))
            self.set_adapter(name, inference_mode=config.inference_mode)
        self._encoders.pop(adapter_name, None)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Turn gradients of the adapters' generators on or off."""
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.request_mask_generator:
                self.request_mask_generator[name].requires_grad_(requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        flags = [(p, p.requires_grad) for p in self.request_mask_generator.parameters()]
        super()._enable_adapter_layers(enabled)
        self._enabled = enabled
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
        if kwargs.get("adapter_names") is not None:
            raise UnsupportedError(
                "adapter_names= is not supported: give each row its own request instead, as request=[…]."
            )
        yield

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        if autocast_adapter_dtype:  # gates in half precision would be coarse; the generator is small
            for parameter in self.request_mask_generator[adapter_name].parameters():
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.float()

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

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Not offered: masks differ from request to request."""
        raise UnsupportedError("request masks differ from request to request: there is no one mask to merge.")

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not offered: masks differ from request to request."""
        self.merge_and_unload()

    def unload(self) -> nn.Module:
        """Take everything off the model, and return it.

        It is what it was before the first injection: the same module objects, weights, ``requires_grad``,
        training mode, hooks and attributes. The handle can no longer serve requests.
        """
        self._check_alive()
        assert self._record is not None
        self._record.restore(self.model)
        self._record = None
        return self.model

    # ---------------------------------------------------------------- files

    def save_pretrained(self, save_directory: str | Path, adapter_name: str | None = None, **_: Any) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, each atomically.

        Args:
            save_directory: Folder to write to; made if it does not exist.
            adapter_name: Which adapter; None: the active one.
        """
        self._check_alive()
        adapter_files.save_adapter(self, Path(save_directory), adapter_name or self._active()[0])

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

    # ---------------------------------------------------------------- inside

    def _active(self) -> tuple[str, RequestMaskGenerator, RequestMaskConfig]:
        self._check_alive()
        names = self.active_adapters
        if not names:
            raise ConfigError("no adapter is active: call set_adapter(name).")
        generator = self.request_mask_generator[names[0]]
        assert isinstance(generator, RequestMaskGenerator)
        return names[0], generator, self.peft_config[names[0]]

    def _check_alive(self) -> None:
        if self._record is None:
            raise ConfigError("these request masks have been unloaded: inject or load them again.")

    def _with_encoder(self, config: RequestMaskConfig, adapter_name: str) -> RequestMaskConfig:
        """The configuration with the encoder's name and width filled in."""
        given = self._encoders.get(adapter_name)
        if given is not None:
            if config.encoder != given.name:
                config = replace(config, encoder=given.name, encoder_options=None)
            self._checked(given, config)
            return replace(config, request_dim=given.dim)
        if config.request_dim is not None:
            return config
        assert config.encoder is not None  # the configuration sees to it that one of the two is there
        encoder = CachedEncoder(make_encoder(config.encoder, config.encoder_options))
        self._encoders[adapter_name] = encoder
        return replace(config, request_dim=encoder.dim)

    @staticmethod
    def _checked(encoder: CachedEncoder, config: RequestMaskConfig) -> CachedEncoder:
        if config.request_dim is not None and encoder.dim != config.request_dim:
            raise EncoderError(
                f"request encoder {encoder.name!r} makes vectors of width {encoder.dim}, the adapter expects "
                f"request_dim={config.request_dim}."
            )
        return encoder


def _rows_of(requests: Requests) -> int:
    return 1 if requests is None or isinstance(requests, str) else len(requests)


def _is_zero(strength: Strength) -> bool:
    return isinstance(strength, (int, float)) and strength == 0


def _check_adapter_name(name: str) -> None:
    if not name or "." in name or name.isdigit() or name in _RESERVED_NAMES or hasattr(nn.ModuleDict(), name):
        raise ConfigError(
            f"adapter name {name!r} cannot be used: it must not be empty, a number, hold a dot, or be a name that the "
            "saved tensors' keys use."
        )


def _check_state(state: MaskState, generator: RequestMaskGenerator, config: RequestMaskConfig) -> None:
    if state.gate != config.gate:
        raise RequestError(f"the mask state has gate={state.gate!r}, the adapter {config.gate!r}.")
    expected = {
        f"{name}.{part}": shape
        for name, spec in generator.specs.items()
        for part, shape in generator.gate.parts(spec).items()
    }
    found = _shapes(state.tensors)
    if found != expected:
        differing = sorted(set(expected.items()) ^ set(found.items()))
        key = differing[0][0]
        raise RequestError(
            f"the mask state does not fit the adapter: {len(differing)} tensors differ, for example "
            f"{key!r} (the adapter has {expected.get(key)}, the state {found.get(key)})."
        )
    known = state.base_fingerprint, config.base_fingerprint
    if None not in known and known[0] != known[1]:
        raise BaseModelMismatchError(
            f"the mask state was made for another base model: it expects {known[0]}, the masked weights are "
            f"{known[1]}. dataclasses.replace(state, base_fingerprint=None) overrides this."
        )


def _shapes(tensors: dict[str, LayerTensors]) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.{part}": tuple(value.shape[1:]) for name, parts in tensors.items() for part, value in parts.items()
    }
