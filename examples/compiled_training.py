"""torch.compile: the forward pass, the loss and the backward pass are one graph each; the GRU is an operator in them.

    python examples/compiled_training.py

--eager trains without the compiler, to compare. Started again, training goes on from its checkpoint.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from data import going_on, load
from model import Classifier, accuracy
from torch.utils.data import DataLoader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--checkpoint", type=Path, default=Path("out/compiled_training.pt"))
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_set, test_set = load()
    torch.manual_seed(0)
    model = Classifier().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = 0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epochs"]
        print(going_on(args.checkpoint, first, args.epochs))
    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    if not args.eager:
        loss_of = torch.compile(loss_of, fullgraph=True)  # fullgraph: raise if anything in it needed Python

    for epoch in range(first, args.epochs):
        order = torch.Generator().manual_seed(epoch)  # another order in each epoch, the same after a restart
        loader = DataLoader(train_set, args.batch, shuffle=True, generator=order, drop_last=True)
        total = 0.0
        for x, y in loader:
            loss = loss_of(x.to(device), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        mean = total / len(loader)
        print(f"epoch {epoch + 1}: loss {mean:.6f}, test accuracy {accuracy(model, test_set):.2%}", flush=True)
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
        torch.save(saved, args.checkpoint)


if __name__ == "__main__":
    main()
