"""A ``Trainer`` whose figures do not depend on the number of processes, and which goes on where it was killed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from cramer_peft.errors import ConfigError
from cramer_peft.training import checkpoints as files
from cramer_peft.training.checkpoints import Checkpoints
from cramer_peft.training.processes import SHARE, Processes, Share

_STATE = "trainer_state.json"  # where Trainer itself looks for it
_ELSEWHERE = "see _load_best_model"  # Trainer asks only whether there is a best checkpoint


class ResumableTrainer(Trainer):
    """Trains on one process or several to the same figures, and keeps checkpoints of what is trained alone.

    **Several processes.** ``per_device_train_batch_size`` is the size of the whole batch: each process draws the same
    batches as one process would and works on its own rows of them, which the collator leaves
    (:meth:`~cramer_peft.training.processes.Processes.own_rows`). A subclass's ``compute_loss`` takes the rows by
    :meth:`share_of`, and weighs its means by :meth:`scales`. Inside :meth:`own_noise` a process has noise of its own.

    **Checkpoints** (:mod:`~cramer_peft.training.checkpoints`) are written by the first process, without pickle, and
    hold trained weights alone. They are whole or not there. The last and the best are kept. Without a folder the best
    weights are kept in memory, where ``load_best_model_at_end`` asks for them.

    Args:
        checkpoints: Where they are kept, as ``save_strategy`` says; None: nowhere.
        settings: Plain values that must be the same when a training is resumed.
        **kwargs: Those of ``transformers.Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        checkpoints: Checkpoints | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["args"]._n_gpu = min(kwargs["args"].n_gpu, 1)  # DataParallel would split what belongs together
        super().__init__(*args, **kwargs)
        self.processes = Processes(self.args.process_index, self.args.world_size)
        self._checkpoints = checkpoints
        self._settings = json.loads(json.dumps(settings or {}))
        self._best: dict[str, Tensor] = {}
        generator = torch.Generator(self.args.device).manual_seed(self.args.seed + 1_000_003 * self.processes.index)
        self._noise = generator.get_state()
        if callable(getattr(self.data_collator, "start_at", None)):
            self.add_callback(_StartCollator(self.data_collator.start_at))

    def train_or_resume(self) -> None:
        """Train, or go on from the last checkpoint; a training that had ended gives its weights at once.

        Raises:
            ConfigError: If there are checkpoints but they are not to be resumed, of other settings, or not the same
                ones for all processes.
            AdapterFileError: If a checkpoint is unreadable or of another model.
        """
        last = None if self._checkpoints is None else self._last_of_all(self._checkpoints)
        if last is None:
            self.train()
            return
        progress = files.read_progress(last)
        self._check_settings(last, progress["settings"])
        if not progress["ended"]:
            self.train(resume_from_checkpoint=str(last))
            return
        assert self._checkpoints is not None
        best = progress["best_step"] if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(str(last if best is None else self._checkpoints.of_step(best)))

    def _last_of_all(self, kept: Checkpoints) -> Path | None:
        # before anything is raised on one process alone, which the others would wait for
        steps = gather_object([kept.last_step()])
        for index, step in enumerate(steps):
            if step != steps[0]:
                raise ConfigError(
                    f"{kept.folder}: the last checkpoint is of step {steps[0]} for process 0, but of step {step} for "
                    f"process {index}. Give a folder on a file system that all machines see, or copy it to each."
                )
        return kept.last()

    def _check_settings(self, path: Path, stored: dict[str, Any]) -> None:
        names = sorted(self._settings.keys() | stored.keys())
        for name in names:
            if stored.get(name) != self._settings.get(name):
                raise ConfigError(
                    f"{name}: found {self._settings.get(name)!r}, but {path} was written with {stored.get(name)!r}. "
                    "Resume with the settings and the data of that training, or give another folder."
                )

    # ---------------------------------------------------------------- several processes

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Whole batches, the same on each process; the collator cuts them."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        shard: Any = loader.batch_sampler
        if self.processes.count > 1:
            # accelerate would give each process other rows, and repeat some to even them out
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def share_of(self, inputs: dict[str, Any]) -> Share | None:
        """Take from a batch which of its rows these are; None: all."""
        values = inputs.pop(SHARE, None)
        return None if values is None else Share.from_tensor(values)

    def scales(self, share: Share | None, *counts: Tensor | int) -> list[Any]:
        """What to multiply this process's means with, so that the mean over processes is the mean over all terms.

        Args:
            share: This process's rows.
            counts: Of each mean, how many terms of this process it is over.
        """
        if share is None:
            return [1.0] * len(counts)
        own = torch.stack([torch.as_tensor(count, device=self.args.device).float() for count in counts])
        own = own * (not share.empty)
        total: Tensor = self.accelerator.reduce(own, "sum")
        return list(own * self.processes.count / total.clamp(min=1))

    @contextmanager
    def own_noise(self) -> Iterator[torch.Generator | None]:
        """Inside, torch's global generator is this process's own, for dropout and the like.

        Gives a generator for draws that all processes must share: the global one's state, which the draws move on.
        With one process it is None: all is drawn from the global one.
        """
        if self.processes.count == 1:
            yield None
            return
        device = self.args.device
        shared = torch.Generator(device)
        shared.set_state(files.device_state(device))
        files.set_device_state(device, self._noise)
        try:
            yield shared
        finally:
            self._noise = files.device_state(device).clone()
            files.set_device_state(device, shared.get_state())

    # ---------------------------------------------------------------- checkpoints: hooks of Trainer

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.state.best_global_step is not None:
            self.state.best_model_checkpoint = _ELSEWHERE
        if self._checkpoints is None:
            if self.state.best_global_step == self.state.global_step:
                tensors = files.trained_tensors(self.model)
                self._best = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
            return
        own = files.random_state(self.args.device)
        if self.processes.count > 1:
            own["noise"] = self._noise
        states = gather_object([own])
        if self.processes.writes:
            self._write(states)
        self.accelerator.wait_for_everyone()

    def _write(self, states: list[dict[str, Tensor]]) -> None:
        assert self._checkpoints is not None
        step, best = self.state.global_step, self.state.best_global_step
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        progress = {
            "step": step,
            "best_step": best,
            "ended": self.control.should_training_stop,
            "settings": self._settings,
            "scheduler": self.lr_scheduler.state_dict(),
        }
        state = json.loads(json.dumps(dataclasses.asdict(self.state)))
        files.write_checkpoint(
            self._checkpoints.of_step(step),
            progress,
            files.trained_tensors(self.model),
            self.optimizer.state_dict(),
            states,
            {_STATE: {**state, "best_model_checkpoint": None, "log_history": []}},
        )
        files.keep_only(self._checkpoints.folder, {step, *([] if best is None else [best])})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint)
        files.fill_trained(self.model if model is None else model, files.read_weights(path), str(path))

    def _load_best_model(self) -> None:
        best = self.state.best_global_step
        if self._checkpoints is None:
            files.fill_trained(self.model, self._best, "the best epoch")
        elif best is not None:
            self._load_from_checkpoint(str(self._checkpoints.of_step(best)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(files.read_optimizer(Path(checkpoint)))
            self.lr_scheduler.load_state_dict(files.read_progress(Path(checkpoint))["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        own = files.read_random(Path(checkpoint), self.processes.index)
        # written by fewer processes: what all share is the same in each state, the noise is as at the start
        state = files.read_random(Path(checkpoint), 0) if own is None else own
        assert state is not None
        files.set_random_state(state, self.args.device)
        if own is not None and "noise" in own:
            self._noise = own["noise"]


class _StartCollator(TrainerCallback):
    """Tells a collator, before the first batch, how many came before it."""

    def __init__(self, start_at: Callable[[int], None]) -> None:
        self._start_at = start_at

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start_at(state.global_step * args.gradient_accumulation_steps)
