"""The embedded model's measures and training helpers, on made-up pictures; no weights and no data are read."""

import random
from pathlib import Path

import torch

from models.tiny import dataset, evaluate, train


def flat(colour: str) -> torch.Tensor:
    """A picture of one palette colour, float32 [3, 128, 128] in 0..255."""
    return torch.tensor(dataset.PALETTE[colour]).float()[:, None, None].expand(-1, 128, 128).clone()


def test_background_is_read_off_the_border() -> None:
    """What fills the middle, and specks on the border, do not change the colour found."""
    picture = flat("teal")
    picture[:, 10:-10, 10:-10] = 255.0
    picture[:, :30, :2] = 0.0
    found = evaluate.nearest_colours(evaluate.border_colours(picture[None]))
    assert dataset.COLOURS[int(found)] == "teal"


def test_every_palette_colour_is_nearest_to_itself() -> None:
    """The twelve colours are told apart."""
    pictures = torch.stack([flat(colour) for colour in dataset.COLOURS])
    found = evaluate.nearest_colours(evaluate.border_colours(pictures))
    assert found.tolist() == list(range(12))


def test_rank_counts_the_sources_nearer_than_the_asked_one() -> None:
    """A picture equal to its source ranks 0; asked for another, it ranks after all that are nearer."""
    sources = torch.stack([flat("black"), flat("gray"), flat("white")])
    picture = flat("black")[None]
    assert evaluate.ranks(picture, sources, [0]) == [0]
    assert evaluate.ranks(picture, sources, [2]) == [2]


def test_report_passes_without_identity_but_not_when_slow() -> None:
    """Identity is reported only; time and background have bounds."""
    measured = {
        "background_pictures": 240,
        "identity_top1_ratio": 0.0,
        "identity_top5_ratio": 0.0,
        "identity_prompts": 200,
        "guidance_scale": 4.0,
        "steps": 20,
        "threads": 2,
        "seed": 0,
    }
    report = evaluate.Report(background_ratio=0.95, picture_seconds=1.5, **measured)  # type: ignore[arg-type]
    assert report.passes()
    assert "below the hoped-for 60%" in "\n".join(report.lines())
    assert not evaluate.Report(background_ratio=1.0, picture_seconds=1.6, **measured).passes()  # type: ignore[arg-type]
    assert not evaluate.Report(background_ratio=0.94, picture_seconds=1.0, **measured).passes()  # type: ignore[arg-type]


def test_composite_centres_the_graphic() -> None:
    """Opaque art covers rows and columns 16 to 111; the rest keeps the colour."""
    art = torch.full((1, 96, 96, 4), 255, dtype=torch.uint8)
    picture = dataset.composite(art, torch.zeros(1, 3))[0]
    assert (picture[:, 16:112, 16:112] == 1).all()
    assert picture.eq(1).sum() == 3 * 96 * 96


def test_prompt_is_natural() -> None:
    """The article fits the name's first letter."""
    assert dataset.prompt("red apple", "blue") == "a red apple on a blue background"
    assert dataset.prompt("owl", "teal").startswith("an owl")


def test_training_captions_include_empty_and_colourless_ones() -> None:
    """About one in ten is empty, and one in twenty is the bare name."""
    thing = dataset.Thing(("owl",), "Animals & Nature")
    rng = random.Random(0)
    captions = [dataset.training_caption(thing, "teal", rng) for _ in range(2000)]
    assert 0.07 < captions.count("") / 2000 < 0.13
    assert 0.03 < captions.count("owl") / 2000 < 0.07


def test_three_in_four_timesteps_are_from_the_noisier_half() -> None:
    """Every batch covers all timesteps evenly, in that proportion."""
    torch.manual_seed(0)
    timesteps = train.noisier_timesteps(64)
    assert int((timesteps >= 500).sum()) == 48
    assert 0 <= int(timesteps.min()) < 100
    assert 900 < int(timesteps.max()) <= 999


def test_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """A second run takes up weights, average, step and clock of the first."""

    def new_run() -> train.Run:
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        return train.Run(tmp_path / "run.pt", 60.0, [weight], [torch.optim.AdamW([weight], lr=0.1)], random.Random(0))

    first = new_run()
    first.update((first.parameters[0] - 1).square().sum())
    first.spent_s = 5.0
    first.save()
    second = new_run()
    assert (second.step, second.spent_s) == (1, 5.0)
    assert torch.equal(second.parameters[0], first.parameters[0])
    assert torch.equal(second.average[0], first.average[0])
    assert not second.is_finished()
