"""`train.debug=overfit`: can the model learn one batch by heart, in every direction? If not, something is broken."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from anyxform.data import Counts, Examples
from anyxform.dataset import Dataset
from anyxform.directions import Directions
from anyxform.field import Direction
from anyxform.modality import Modality
from anyxform.optim import set_rate
from anyxform.order import Order
from anyxform.rows import balance
from anyxform.sequence import Batch, Example, pack
from anyxform.train import Metrics, TrainState, train_step

ENOUGH = 0.05
"""A direction is known by heart below this loss."""


def one_of_each(
    datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality], directions: Iterable[Direction], seed: int = 0
) -> tuple[dict[str, Example], dict[str, str]]:
    """An example of each direction as training sees it, but neither augmented nor with anything dropped.

    Where every sample of a direction is broken, it is in the second dictionary, with the first one's reason.
    """
    order = Order({name: len(dataset) for name, dataset in datasets.items()}, seed=seed)
    twice = range(2 * sum(map(len, datasets.values())))
    found, broken = dict[str, Example](), dict[str, str]()
    for name in map(str, directions):
        examples, counts = Examples(datasets, modalities, Directions({name: 1.0}), order, train=False), Counts()
        drawn = (examples(index, counts) for index in twice)
        example = next((it for it in drawn if it is not None and it.direction == name), None)
        if example is not None:
            found[name] = example
        else:
            broken[name] = next(iter(counts.reasons), "no sample has it")
    return found, broken


def rows_of(examples: Sequence[Example], condition_ids: dict[str, int], size: int) -> list[Batch]:
    """All examples in as few rows of at most `size` tokens as they fit into."""
    size = max(size, *map(len, examples))
    rows = balance([len(example) for example in examples], size)
    return [pack([examples[number] for number in row], condition_ids) for row in rows]


def overfit(state: TrainState, batches: Sequence[Batch], *, steps: int = 1000, lr: float = 1e-3) -> Iterator[Metrics]:
    """Train on the same rows until every direction is below `ENOUGH` or `steps` are over, yielding each step's metrics.

    Without dropout, early exits or weight decay; the rate rises over 20 steps, then falls to 0.
    """
    model, began = state.model.eval(), time.perf_counter()
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in batches]
    while state.step < steps:
        rate = lr * min(1.0, (state.step + 1) / 20) * (1 - state.step / steps)
        set_rate(state.optimizer, rate)
        for group in state.optimizer.param_groups:
            group["weight_decay"] = 0.0
        metrics = train_step(model, state.optimizer, batches)
        state.step += 1
        state.tokens += sum(batch.num_tokens for batch in batches)
        state.seconds = time.perf_counter() - began
        speed = {"seconds": state.seconds, "tokens_per_second": state.tokens / state.seconds}
        yield {"step": state.step, "lr": rate, **metrics, **speed}
        if all(loss < ENOUGH for loss in metrics["directions"].values()):
            return
