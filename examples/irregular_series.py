"""What someone does, from a watch's sensors of which much is missing, at uneven times: GRU-D, by `trigru.GRUD`.

    python examples/irregular_series.py

BasicMotions (of the UEA archive, comes with the package aeon): 80 recordings of standing, walking, running and
badminton, three accelerometers and three gyroscopes, 100 steps of a tenth of a second. Nothing is missing there, so it
is taken away here, by a seeded generator: a quarter of the steps, and 7 of 10 values in those that are left. At the end
the same update is timed with the loop that people write, a step at a time.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from aeon.datasets import load_basic_motions
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import trigru

CHANNELS, HIDDEN = 6, 64
ACTIVITIES = ["badminton", "running", "standing", "walking"]
Series = dict[str, Tensor]


def load(split: str, generator: torch.Generator) -> Series:
    """(recordings, steps, CHANNELS): values, NaN where none is, and the mask; (recordings, steps): times in seconds;
    (recordings,): lengths and activities."""
    arrays, labels = load_basic_motions(split=split)
    values, times = [], []
    for array in arrays:
        recording = torch.from_numpy(array.T).float()
        kept = torch.rand(len(recording), generator=generator) < 0.75
        missing = torch.rand(recording.shape, generator=generator) < 0.7
        values.append(recording.masked_fill(missing, torch.nan)[kept])
        times.append(kept.nonzero().flatten() / 10)
    lengths, activities = torch.tensor([len(x) for x in times]), [ACTIVITIES.index(label) for label in labels]
    found = {"values": pad_sequence(values, batch_first=True, padding_value=torch.nan), "lengths": lengths}
    found |= {"times": pad_sequence(times, batch_first=True), "activity": torch.tensor(activities)}
    return found | {"mask": ~found["values"].isnan()}


class Classifier(nn.Module):
    """Logits of each recording's activities."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.grud = trigru.GRUD(CHANNELS, HIDDEN, batch_first=True, mean=mean)
        self.linear = nn.Linear(HIDDEN, len(ACTIVITIES))

    def forward(self, series: Series) -> Tensor:
        gaps = self.grud.time_gaps(series["times"], series["mask"])
        _, h_n = self.grud(series["values"], series["mask"], gaps, lengths=series["lengths"])
        return self.linear(h_n[0])


class StepByStep(nn.Module):
    """The same with the weights of a Classifier, a step at a time: the paper's equations."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, series: Series) -> Tensor:
        layer = self.model.grud
        gru, mask = layer.gru, series["mask"].float()
        values, gaps = series["values"].nan_to_num(), torch.zeros_like(series["values"])
        times = series["times"]
        for t in range(1, values.shape[1]):
            gaps[:, t] = (times[:, t] - times[:, t - 1])[:, None] + (1 - mask[:, t - 1]) * gaps[:, t - 1]
        w_rz, w_n = gru.weight_ih_l0.split([2 * HIDDEN, HIDDEN])
        u_rz, u_n = gru.weight_hh_l0.split([2 * HIDDEN, HIDDEN])
        b_rz, b_n = (gru.bias_ih_l0 + gru.bias_hh_l0).split([2 * HIDDEN, HIDDEN])
        h, last = values.new_zeros(len(values), HIDDEN), layer.mean.expand(len(values), CHANNELS)
        for t in range(values.shape[1]):
            x, m, d = values[:, t], mask[:, t], gaps[:, t]
            gamma_x = torch.exp(-F.relu(layer.weight_gamma_x * d + layer.bias_gamma_x))
            gamma_h = torch.exp(-F.relu(F.linear(d, layer.weight_gamma_h, layer.bias_gamma_h)))
            last = m * x + (1 - m) * last
            x = m * x + (1 - m) * (gamma_x * last + (1 - gamma_x) * layer.mean)
            before, x = gamma_h * h, torch.cat([x, m], 1)
            r, z = torch.sigmoid(F.linear(x, w_rz, b_rz) + F.linear(before, u_rz)).chunk(2, 1)
            n = torch.tanh(F.linear(x, w_n, b_n) + F.linear(r * before, u_n))
            h = torch.where((t < series["lengths"])[:, None], (1 - z) * before + z * n, h)
        return self.model.linear(h)


def seconds(models: list[nn.Module], series: Series) -> list[tuple[float, list[Tensor]]]:
    """Of each model the shortest of some forwards and backwards, taken in turns, and the gradients."""
    taken: list[list[float]] = [[] for _ in models]
    grads: list[list[Tensor]] = [[] for _ in models]
    for number in list(range(len(models))) * 15:
        start = time.perf_counter()
        loss = F.cross_entropy(models[number](series), series["activity"])
        grads[number] = list(torch.autograd.grad(loss, list(models[number].parameters())))
        taken[number].append(time.perf_counter() - start)
    return [(min(times), found) for times, found in zip(taken, grads, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(args.seed)
    train, test = load("train", generator), load("test", generator)
    mean = train["values"].flatten(0, 1).nanmean(0)
    observed = [f"{series['mask'].sum() / (series['lengths'].sum() * CHANNELS):.0%}" for series in (train, test)]
    print(f"of the values at the steps that are left {' and '.join(observed)} were observed, in training and test")

    torch.manual_seed(args.seed)
    model = Classifier(mean)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(1, args.epochs + 1):
        for rows in torch.randperm(len(train["activity"])).split(args.batch):
            loss = F.cross_entropy(model(batch := {k: v[rows] for k, v in train.items()}), batch["activity"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 10 == 0 or epoch == args.epochs:
            with torch.no_grad():
                right = (model(test).argmax(1) == test["activity"]).float().mean()
            print(f"epoch {epoch}: loss {loss.item():.3f}, test accuracy {right:.1%}", flush=True)

    batch = {name: x[: args.batch] for name, x in train.items()}
    print(f"an update on {len(batch['activity'])} recordings of up to {batch['values'].shape[1]} steps:")
    (ours, want), (theirs, grads) = seconds([model, StepByStep(model)], batch)
    for got, wanted in zip(grads, want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)
    print(f"  trigru.GRUD: {ours * 1e3:.1f} ms")
    print(f"  a step at a time: {theirs * 1e3:.1f} ms, the same gradients: speed-up {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
