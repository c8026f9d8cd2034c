"""`train.debug=overfit`: can the model learn one batch by heart, in every direction? If not, something is broken."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from anyxform.data import Counts, Examples, balance
from anyxform.dataset import Dataset
from anyxform.directions import Directions
from anyxform.field import Direction
from anyxform.modality import Modality
from anyxform.order import Order
from anyxform.sequence import Batch, Example, pack
from anyxform.train import Metrics, TrainState, train_step

ENOUGH = 0.05
"""A direction is known by heart below this loss."""


def one_of_each(
    datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality], directions: Iterable[Direction], seed: int = 0
) -> dict[str, Example | None]:
    """An example of each direction as training sees it, but neither augmented nor with anything dropped.

    None where every sample of a direction is broken.
    """
    order = Order({name: len(dataset) for name, dataset in datasets.items()}, seed=seed)
    most = 2 * sum(map(len, datasets.values()))
    found: dict[str, Example | None] = {}
    for direction in directions:
        only = Directions({str(direction): 1.0})
        examples = Examples(datasets, modalities, only, order, train=False)
        drawn = (examples(index, Counts()) for index in range(most))
        found[str(direction)] = next((e for e in drawn if e and e.direction == str(direction)), None)
    return found


def rows_of(examples: Sequence[Example], condition_ids: dict[str, int], size: int) -> list[Batch]:
    """All examples in as few rows of at most `size` tokens as they fit into."""
    size = max(size, *map(len, examples))
    return [
        pack([examples[number] for number in row], condition_ids) for row in balance([len(e) for e in examples], size)
    ]


@dataclass(frozen=True)
class Verdict:
    """The last loss of every direction; those at or above `ENOUGH` are not learnt."""

    losses: dict[str, float]

    @property
    def failed(self) -> dict[str, float]:
        return {name: loss for name, loss in self.losses.items() if not loss < ENOUGH}


def overfit(state: TrainState, batches: Sequence[Batch], *, steps: int = 1000, lr: float = 1e-3) -> Iterator[Metrics]:
    """Train on the same rows until every direction is below `ENOUGH` or `steps` are over, yielding each step's metrics.

    Without dropout or early exits; the rate rises over 20 steps, then falls to 0.
    """
    model = state.model.eval()
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in batches]
    while state.step < steps:
        rate = lr * min(1.0, (state.step + 1) / 20) * (1 - state.step / steps)
        for group in state.optimizer.param_groups:
            group.update(lr=rate, weight_decay=0.0)
        metrics = train_step(model, state.optimizer, batches)
        state.step += 1
        yield {"step": state.step, "lr": rate, **metrics}
        if all(loss < ENOUGH for loss in metrics["directions"].values()):
            return
