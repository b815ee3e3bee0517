"""What rows share, and what they do not: prompts in the cache, seeds, errors."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from observability.events import CacheLookedUp, Event
from observability.labels import CacheResult
from service.core import Params
from service.engine.contract import Picture
from service.engine.stepwise import Prompt, PromptCache, StepwiseModel
from tests.support import build, pipelines
from tests.support.stepping import Models, assert_same, draw, pictures_of, stepwise, unfinished, wishes

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The models that the tests share."""
    return Models(tmp_path_factory)


def lookups(events: Sequence[Event]) -> Counter[CacheResult]:
    """How often the prompt cache knew and did not know."""
    found: Counter[CacheResult] = Counter()
    for event in events:
        if isinstance(event, CacheLookedUp):
            found[event.result] += event.lookups
    return found


def test_each_picture_of_a_request_has_a_seed_of_its_own(load: Models) -> None:
    """Picture n is drawn with seed + n."""
    loaded = load("tiny")
    params = wishes(loaded)[0]
    rows = stepwise(loaded).begin([Picture("task", index, params) for index in (0, 2)])
    other = stepwise(loaded).begin([Picture("task", 0, wishes(loaded, seed=params.seed + 2)[0])])
    assert not torch.equal(rows[0].latents, rows[1].latents)
    assert torch.equal(rows[1].latents, other[0].latents)


def test_prompts_seen_lately_are_not_encoded_again(load: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is encoded in one call, each text once; every lookup of a picture is told."""
    loaded = load("sdxl")
    events: list[Event] = []
    model = stepwise(loaded, events=events)
    calls: list[list[str | None]] = []
    encode = model._family.encode
    monkeypatch.setattr(model._family, "encode", lambda prompts: (calls.append(list(prompts)), encode(prompts))[1])
    params = [build.params(prompt=prompt, scheduler="euler") for prompt in ("a dog", "a cat", "a dog")]
    model.begin([Picture("task", 0, each) for each in params])
    assert calls == [["a dog", None, "a cat"]]
    assert lookups(events) == {CacheResult.HIT: 3, CacheResult.MISS: 3}
    model.begin([Picture("task", 0, build.params(prompt="a cat", scheduler="euler", guidance_scale=1.0))])
    assert len(calls) == 1
    assert lookups(events) == {CacheResult.HIT: 4, CacheResult.MISS: 3}


def test_embeddings_are_not_changed_by_use(load: Models) -> None:
    """Those in the cache are the same after pictures were drawn with them, so the pictures come out the same."""
    loaded = load("sdxl")
    model = stepwise(loaded)
    params = wishes(loaded)[:3]
    before = {text: [each.clone() for each in prompt.embeddings] for text, prompt in encoded(model, params).items()}
    first = draw(model, params)
    for text, prompt in encoded(model, params).items():
        assert all(torch.equal(*pair) for pair in zip(prompt.embeddings, before[text], strict=True))
    assert all(np.array_equal(*pair) for pair in zip(draw(model, params), first, strict=True))


def encoded(model: StepwiseModel, params: Sequence[Params]) -> dict[str | None, Prompt]:
    """The prompts of `params`, from the cache when they are there."""
    with torch.inference_mode():
        return model._prompts([model._texts(each) for each in params])


def test_the_prompt_cache_holds_no_more_than_its_bytes() -> None:
    """The prompt not used for longest goes first; what is too large for the cache is not kept; zero keeps none."""

    def prompt(size: int) -> Prompt:
        return Prompt((torch.zeros(size // 5), torch.zeros(size // 10, dtype=torch.float16)), lambda: False)

    cache = PromptCache(100)
    for text in "abc":
        cache.put(text, prompt(50))
    assert cache.nbytes == 100
    assert cache.get("a") is None
    assert cache.get("b") is not None
    cache.put("d", prompt(50))
    assert cache.get("c") is None
    assert cache.get("b") is not None
    cache.put("large", prompt(200))
    assert cache.get("large") is None
    assert cache.nbytes <= 100
    nothing = PromptCache(0)
    nothing.put("a", prompt(50))
    assert nothing.get("a") is None
    assert nothing.nbytes == 0


def test_without_a_cache_pictures_are_the_same(load: Models) -> None:
    """Batch-mates still share what is encoded for them."""
    loaded = load("tiny")
    params = wishes(loaded)[2:4]
    events: list[Event] = []
    pictures = draw(stepwise(loaded, cache=0, events=events), params)
    assert CacheResult.HIT not in lookups(events)
    assert_same(pictures, [pipelines.lone(loaded.pipe, each) for each in params])


def test_an_error_in_a_scheduler_is_that_row_s_alone(load: Models) -> None:
    """Its batch-mates go on and come out as they would have."""
    loaded = load("tiny")
    model = stepwise(loaded)
    params = wishes(loaded)[:3]
    rows = model.begin([Picture("task", 0, each) for each in params])
    model.denoise(rows)
    error = ValueError("no such sigma")

    def fail(*_: object, **__: object) -> None:
        raise error

    rows[1].scheduler.step = fail
    assert model.denoise(rows) == [None, error, None]
    assert [row.step for row in rows] == [2, 1, 2]
    others = [rows[0], rows[2]]
    while unfinished(others):
        model.denoise(unfinished(others))
    assert_same(pictures_of(model, others), [pipelines.lone(loaded.pipe, each) for each in (params[0], params[2])])


def test_an_error_in_the_denoiser_leaves_every_row_as_it_was(load: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the step can be taken again, also in other company."""
    loaded = load("tiny")
    model = stepwise(loaded)
    params = wishes(loaded)[:2]
    rows = model.begin([Picture("task", 0, each) for each in params])
    model.denoise(rows)
    predict = model._family.predict

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(model._family, "predict", fail)
    with pytest.raises(torch.OutOfMemoryError):
        model.denoise(rows)
    monkeypatch.setattr(model._family, "predict", predict)
    assert [row.step for row in rows] == [1, 1]
    for row in rows:
        while unfinished([row]):
            model.denoise([row])
    assert_same(pictures_of(model, rows), [pipelines.lone(loaded.pipe, each) for each in params])
