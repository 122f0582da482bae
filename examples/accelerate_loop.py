"""Accelerate: a plain loop whose model, optimizer and data went through `prepare`.

    accelerate launch examples/accelerate_loop.py

or `torchrun --nproc-per-node 2 examples/accelerate_loop.py`. Started again, training goes on from its checkpoint.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from data import going_on, load
from model import Classifier, accuracy
from torch.utils.data import DataLoader


class Progress:
    """The number of epochs done, saved with everything else."""

    epochs = 0

    def state_dict(self) -> dict[str, int]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epochs = state["epochs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="of all processes together")
    parser.add_argument("--checkpoint", type=Path, default=Path("out/accelerate"), help="a folder")
    args = parser.parse_args()

    seedable = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True)
    # without cpu=True, processes that torchrun started on a CPU would each train alone
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), dataloader_config=seedable)
    train_set, test_set = load()
    torch.manual_seed(0)
    model, progress = Classifier(), Progress()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = DataLoader(train_set, args.batch, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(progress)
    if args.checkpoint.exists():
        accelerator.load_state(args.checkpoint)
        accelerator.print(going_on(args.checkpoint, progress.epochs, args.epochs))

    for epoch in range(progress.epochs, args.epochs):
        loader.set_epoch(epoch)  # another order in each epoch, the same after a restart
        losses = []
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        mean = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        right = accuracy(accelerator.unwrap_model(model), test_set)
        accelerator.print(f"epoch {epoch + 1}: loss {mean:.6f}, test accuracy {right:.2%}", flush=True)
        progress.epochs = epoch + 1
        accelerator.save_state(args.checkpoint)
    accelerator.wait_for_everyone()  # gloo's threads must let go of the last tensors before Python ends
    accelerator.end_training()


if __name__ == "__main__":
    main()
