"""Train the embedded model: a small latent diffusion model of flat graphics on solid backgrounds.

Stages: ``data`` (fetch and render), ``autoencoder``, ``latents`` (encode every picture once), ``denoiser`` (and text
encoder), ``export`` (a diffusers folder, fp16). A finished stage is skipped; an interrupted one goes on where its last
checkpoint in the work folder stands. A time budget counts training steps only, and a step at most ten seconds, so that
a suspended process loses nothing.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from models.tiny.dataset import COLOURS, Art, composite, load_art, palette_tensor, training_caption
from models.tiny.networks import Denoiser, assemble, load_denoiser, new_autoencoder, new_denoiser, noise_schedule
from models.tiny.optim import Muon, is_matrix

STAGES = ("data", "autoencoder", "latents", "denoiser", "export")
LONGEST_STEP_S = 10.0
SAVE_EVERY_S = 60.0
AVERAGE_DECAY = 0.98  # short: the falling rate averages already, and a CPU's run has few steps
LATENT_NOISE = 0.15  # makes the decoder forgiving of the denoiser's errors


@dataclass(frozen=True)
class Options:
    """The command line, read."""

    work: Path
    output: Path
    npm: Path | None
    init: Path | None
    stages: tuple[str, ...]
    minutes: float
    autoencoder_minutes: float
    device: torch.device
    batch: int
    learning_rate: float
    muon_rate: float
    seed: int

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 where the hardware multiplies it faster than fp32: on CUDA, and on CPUs with AMX."""
        fast = self.device.type == "cuda" or torch.cpu._is_amx_tile_supported()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)


@dataclass
class Run:
    """One stage's resumable progress: what is trained, its optimisers, an average of the weights, and the clock."""

    path: Path
    budget_s: float
    parameters: list[torch.nn.Parameter]
    optimisers: list[torch.optim.Optimizer]
    rng: random.Random
    step: int = 0
    spent_s: float = 0.0
    saved_s: float = 0.0

    def __post_init__(self) -> None:
        self.average = [p.detach().clone() for p in self.parameters]
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        if self.path.exists():
            self.restore()

    def is_finished(self) -> bool:
        return self.spent_s >= self.budget_s

    def restore(self) -> None:
        """Take up the checkpoint: weights, average, optimisers, step, clock, random states."""
        kept: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=False)
        with torch.no_grad():
            for parameter, average, (value, mean) in zip(self.parameters, self.average, kept["weights"], strict=True):
                parameter.copy_(value)
                average.copy_(mean)
        for optimiser, state in zip(self.optimisers, kept["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.step, self.spent_s, self.saved_s = kept["step"], kept["spent_s"], kept["spent_s"]
        torch.set_rng_state(kept["torch_rng"])
        self.rng.setstate(kept["python_rng"])

    def save(self) -> None:
        """Write the checkpoint beside the old one, then take its place in one rename."""
        weights = [(p.detach().cpu(), a.cpu()) for p, a in zip(self.parameters, self.average, strict=True)]
        partial = self.path.with_suffix(".partial")
        torch.save(
            {
                "weights": weights,
                "optimisers": [o.state_dict() for o in self.optimisers],
                "step": self.step,
                "spent_s": self.spent_s,
                "torch_rng": torch.get_rng_state(),
                "python_rng": self.rng.getstate(),
            },
            partial,
        )
        partial.replace(self.path)
        self.saved_s = self.spent_s

    def update(self, loss: torch.Tensor) -> None:
        """One step of every optimiser at the scheduled rate, then of the average."""
        factor = rate_factor(self.step, self.spent_s / self.budget_s)
        for optimiser, rates in zip(self.optimisers, self.base_rates, strict=True):
            optimiser.zero_grad()
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1

    def use_average(self) -> None:
        """Put the averaged weights in place of the last ones."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)


def rate_factor(step: int, progress: float) -> float:
    """The learning rate's factor: 50 steps of warm-up, level to 40 % of the time, then down to 2 % in a line."""
    return min(1.0, (step + 1) / 50) * min(1.0, max(0.02, (1 - progress) / 0.6))


def fit(run: Run, loss_of_batch: Callable[[], torch.Tensor], name: str) -> None:
    """Train until the budget is spent, logging and saving on the way."""
    losses: list[float] = []
    while not run.is_finished():
        began = time.monotonic()
        loss = loss_of_batch()
        run.update(loss)
        losses.append(loss.item())
        run.spent_s += min(LONGEST_STEP_S, time.monotonic() - began)
        if run.step % 50 == 0:
            print(f"{name} step {run.step} {run.spent_s:.0f}s loss {sum(losses) / len(losses):.4f}", flush=True)
            losses.clear()
        if run.is_finished() or run.spent_s - run.saved_s > SAVE_EVERY_S:
            run.save()
    run.use_average()


def autoencoder_stage(options: Options, art: Art) -> AutoencoderTiny:
    """The trained autoencoder: from the work folder, from ``--init``, or trained here (L1 and edges)."""
    folder = options.work / "autoencoder"
    source, subfolder = (folder, None) if folder.exists() else (options.init, "vae")
    if source is not None:
        return AutoencoderTiny.from_pretrained(source, subfolder=subfolder, torch_dtype=torch.float32)
    model = new_autoencoder().train().to(options.device, memory_format=torch.channels_last)
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    rng = random.Random(options.seed)
    run = Run(options.work / "autoencoder.pt", options.autoencoder_minutes * 60, parameters, [optimiser], rng)
    palette = palette_tensor()

    def loss_of_batch() -> torch.Tensor:
        things, colours = torch.randint(len(art), (16,)), torch.randint(len(COLOURS), (16,))
        left, top = 16 + rng.randint(-4, 4), 16 + rng.randint(-4, 4)
        pictures = composite(art.rgba[things], palette[colours], left, top).to(options.device)
        with options.autocast():
            latents = model.encode(pictures).latents
            decoded = model.decode(latents + LATENT_NOISE * torch.randn(latents.shape).to(options.device)).sample
        return autoencoder_loss(pictures, decoded.float(), latents.float())

    fit(run, loss_of_batch, "autoencoder")
    model.eval().cpu().save_pretrained(folder)
    return model


def autoencoder_loss(pictures: torch.Tensor, decoded: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Absolute error of pixels and of edges [n, 3, 128, 128], and a pull of the latents to zero mean, unit size."""
    edges = sum(((decoded.diff(dim=d) - pictures.diff(dim=d)).abs().mean() for d in (2, 3)), torch.tensor(0.0))
    spread = latents.mean() ** 2 + (latents.pow(2).mean() - 1).clamp(min=0)
    return (decoded - pictures).abs().mean() + 0.7 * edges + 0.02 * spread


@torch.inference_mode()
def latents_stage(options: Options, art: Art, autoencoder: AutoencoderTiny) -> torch.Tensor:
    """Every thing on every colour, encoded once: fp16 [things, 12, 4, 16, 16], not yet scaled."""
    path = options.work / "latents.pt"
    if path.exists():
        kept: torch.Tensor = torch.load(path)
        return kept
    encoder = autoencoder.eval().to(options.device, memory_format=torch.channels_last)
    out = torch.empty(len(art), len(COLOURS), 4, 16, 16, dtype=torch.float16)
    for colour, rgb in enumerate(palette_tensor()):
        for part in chunks(len(art), 64):
            pictures = composite(art.rgba[part], rgb.expand(part.stop - part.start, -1)).to(options.device)
            with options.autocast():
                out[part, colour] = encoder.encode(pictures).latents.half().cpu()
    torch.save(out, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    autoencoder.cpu()
    return out


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``range(count)``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def scaling_factor(latents: torch.Tensor) -> float:
    """What brings cached latents to unit variance."""
    return 1 / float(latents[:200].float().std())


def denoiser_stage(options: Options, art: Art, latents: torch.Tensor) -> Denoiser:
    """The denoiser and text encoder, trained together on the velocity's squared error, averaged weights in place."""
    denoiser = load_denoiser(options.init) if options.init else new_denoiser(art.things, options.work)
    for module in (denoiser.unet, denoiser.text):
        module.train().to(options.device)
    named = denoiser.named_parameters()
    run = Run(
        options.work / "denoiser.pt",
        options.minutes * 60,
        [parameter for _, parameter in named],
        denoiser_optimisers(options, named),
        random.Random(options.seed),
    )
    fit(run, denoiser_loss(options, art, latents, denoiser, run.rng), "denoiser")
    for module in (denoiser.unet, denoiser.text):
        module.cpu()
    return denoiser


def denoiser_optimisers(options: Options, named: list[tuple[str, torch.nn.Parameter]]) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the hidden matrices when ``--muon-rate`` is above zero."""
    matrices = [p for name, p in named if options.muon_rate > 0 and is_matrix(name, p)]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    adamw = torch.optim.AdamW(rest, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    return [adamw, Muon(matrices, options.muon_rate)] if matrices else [adamw]


def denoiser_loss(
    options: Options, art: Art, latents: torch.Tensor, denoiser: Denoiser, rng: random.Random
) -> Callable[[], torch.Tensor]:
    """A function that draws a batch and returns its loss."""
    schedule = noise_schedule()
    factor = scaling_factor(latents)
    order = epochs(len(art), rng)

    def loss_of_batch() -> torch.Tensor:
        things = torch.tensor([next(order) for _ in range(options.batch)])
        colours = torch.randint(len(COLOURS), (options.batch,))
        clean = (latents[things, colours].float() * factor).to(options.device)
        pairs = zip(things.tolist(), colours.tolist(), strict=True)
        ids = denoiser.tokens([training_caption(art.things[t], COLOURS[c], rng) for t, c in pairs]).to(options.device)
        timesteps = noisier_timesteps(options.batch).to(options.device)
        noise = torch.randn(clean.shape).to(options.device)  # drawn on the CPU, whose state a checkpoint keeps
        with options.autocast():
            predicted = denoiser.velocity(schedule.add_noise(clean, noise, timesteps), timesteps, ids)
        return F.mse_loss(predicted.float(), schedule.get_velocity(clean, noise, timesteps))

    return loss_of_batch


def epochs(count: int, rng: random.Random) -> Iterator[int]:
    """Every index once in a random order, then again in another, without end."""
    while True:
        yield from rng.sample(range(count), count)


def noisier_timesteps(batch: int) -> torch.Tensor:
    """Timesteps int64 [batch], three in four from the noisier half, spread evenly over the batch.

    There a picture must come from its caption alone, which is what takes longest to learn.
    """
    u = (torch.randperm(batch) + torch.rand(batch)) / batch
    return (1000 * torch.where(u < 0.25, 2 * u, 0.5 + (u - 0.25) / 1.5)).long().clamp(max=999)


def export_stage(options: Options, denoiser: Denoiser, autoencoder: AutoencoderTiny, latents: torch.Tensor) -> None:
    """Write the pipeline as fp16 safetensors.

    transformers would load the text encoder in the number format its configuration names; float32 there makes a load
    that names no format give one format to every part.
    """
    pipeline = assemble(denoiser, autoencoder, scaling_factor(latents))
    pipeline.to(dtype=torch.float16).save_pretrained(options.output, safe_serialization=True)
    config = options.output / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    print(f"wrote {options.output}")


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, default=Path("data/tiny-train"), help="folder for data and checkpoints (%(default)s)")
    add("--output", type=Path, default=Path("data/tiny-train/model"), help="diffusers folder to write (%(default)s)")
    add("--npm", type=Path, help="folder that already holds the packages' tarballs (default: npm fetches them)")
    add("--init", type=Path, help="diffusers folder to start from (default: start from nothing)")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stop after the last named stage (all)")
    add("--minutes", type=float, default=120, help="training time of the denoiser (%(default)s)")
    add("--autoencoder-minutes", type=float, default=35, help="training time of the autoencoder (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (%(default)s)")
    add("--batch", type=int, help="denoiser batch (64 on cpu, 512 on cuda)")
    add("--learning-rate", type=float, default=6e-4, help="AdamW's, for the denoiser (%(default)s)")
    add("--muon-rate", type=float, default=1e-3, help="Muon's, for hidden weights; 0 leaves all to AdamW (%(default)s)")
    add("--seed", type=int, default=0, help="of every random choice (%(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (torch's default)")
    given = vars(parser.parse_args(arguments))
    wanted = given.pop("device")
    if threads := given.pop("threads"):
        torch.set_num_threads(threads)
    given["device"] = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
    given["batch"] = given["batch"] or (512 if given["device"].type == "cuda" else 64)
    given["stages"] = tuple(given["stages"])
    return Options(**given)


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    last = max(STAGES.index(stage) for stage in options.stages)
    art = load_art(options.work, options.npm)
    if last < STAGES.index("autoencoder"):
        return
    autoencoder = autoencoder_stage(options, art)
    if last < STAGES.index("latents"):
        return
    latents = latents_stage(options, art, autoencoder)
    if last < STAGES.index("denoiser"):
        return
    denoiser = denoiser_stage(options, art, latents)
    if last >= STAGES.index("export"):
        export_stage(options, denoiser, autoencoder, latents)


if __name__ == "__main__":
    main()
