"""A ``Trainer`` whose figures do not depend on the number of processes, and which resumes after it was killed."""

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
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import ExportableState

from cramer_peft.errors import ConfigError
from cramer_peft.training import checkpoints as files
from cramer_peft.training.callbacks import ProgressLines
from cramer_peft.training.checkpoints import Checkpoints
from cramer_peft.training.processes import SHARE, Processes, Share

_STATE = "trainer_state.json"  # Trainer looks for this name
_ELSEWHERE = "see _load_best_model"  # no path: if it is set, Trainer calls that method, which is ours


class ResumableTrainer(Trainer):
    """Trains on one process or several to the same figures, and checkpoints only what is trained.

    **Several processes.** ``per_device_train_batch_size`` is the size of the whole batch. Each process draws the same
    batches as one process would. The collator cuts each batch to the process's own rows
    (:meth:`~cramer_peft.training.Processes.own_rows`). A subclass's ``compute_loss`` finds out which rows these are by
    :meth:`share_of`, and weighs its means by :meth:`scales`. Inside :meth:`own_noise` each process draws its own noise.

    **Checkpoints** are written by the first process, without pickle, and hold only trained weights. Each is complete or
    absent. The last and the best are kept. Without a folder the best weights are kept in memory, if
    ``load_best_model_at_end`` needs them.

    **Progress** is lines, one for each epoch (:class:`ProgressLines`), in place of transformers' bars and dictionaries,
    and none with ``disable_tqdm=True``.

    Args:
        checkpoints: Folder to keep them in, at the times of ``save_strategy``; None: no checkpoints.
        settings: Plain values that must be the same when a training is resumed.
        **kwargs: Arguments of ``transformers.Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        checkpoints: Checkpoints | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["args"]._n_gpu = min(kwargs["args"].n_gpu, 1)  # DataParallel would split rows that belong together
        super().__init__(*args, **kwargs)
        self.processes = Processes(self.args.process_index, self.args.world_size)
        self._checkpoints = checkpoints
        self._settings = json.loads(json.dumps(settings or {}))
        self._best: dict[str, Tensor] = {}
        generator = torch.Generator(self.args.device).manual_seed(self.args.seed + 1_000_003 * self.processes.index)
        self._noise = generator.get_state()
        for callback in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            self.remove_callback(callback)
        if not self.args.disable_tqdm:
            self.add_callback(ProgressLines())
        if callable(getattr(self.data_collator, "start_at", None)):
            self.add_callback(_StartCollator(self.data_collator.start_at))

    def train_or_resume(self) -> None:
        """Train, or continue from the last checkpoint; a training that has ended already only loads its weights.

        Raises:
            ConfigError: If there are checkpoints, and ``resume`` is off, their settings differ, or the processes see
                different ones.
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
        # Compared before anything can raise: the other processes would wait for one that failed alone.
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
        """Return a loader of whole batches, the same on each process; the collator cuts them."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        shard: Any = loader.batch_sampler
        if self.processes.count > 1:
            # accelerate would give each process different batches, and repeat rows to make them equally many
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def share_of(self, inputs: dict[str, Any]) -> Share | None:
        """Remove the share from a batch and return it; None if the batch is whole."""
        values = inputs.pop(SHARE, None)
        return None if values is None else Share.from_tensor(values)

    def scales(self, share: Share | None, *counts: Tensor | int) -> list[Any]:
        """Return a factor for each of this process's means, so that the processes' average is the mean over all terms.

        Args:
            share: This process's rows.
            counts: Number of terms of each mean in this process.
        """
        if share is None:
            return [1.0] * len(counts)
        own = torch.stack([torch.as_tensor(count, device=self.args.device).float() for count in counts])
        own = own * (not share.empty)
        total: Tensor = self.accelerator.reduce(own, "sum")
        return list(own * self.processes.count / total.clamp(min=1))

    @contextmanager
    def own_noise(self) -> Iterator[torch.Generator | None]:
        """Give torch's global generator a state of this process's own inside the block, for dropout and the like.

        Yields a generator for draws that must be the same in all processes; it goes on from the global state. With
        one process it is None, and everything is drawn from the global generator.
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
        # Written by fewer processes: the shared state is the same in each file, and the noise starts anew.
        state = files.read_random(Path(checkpoint), 0) if own is None else own
        assert state is not None
        files.set_random_state(state, self.args.device)
        if own is not None and "noise" in own:
            self._noise = own["noise"]


class _StartCollator(TrainerCallback):
    """Tells a collator, before the first batch, how many batches an earlier run has drawn."""

    def __init__(self, start_at: Callable[[int], None]) -> None:
        self._start_at = start_at

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start_at(state.global_step * args.gradient_accumulation_steps)
