"""Lightning: the usual LightningModule and Trainer.

    python examples/lightning_module.py --devices 2

Started again, training goes on from Lightning's own checkpoint.
"""

import argparse
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from data import load
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from model import Classifier, accuracy
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Digits(lightning.LightningModule):
    """The classifier with its loss, optimizer and training data."""

    def __init__(self, train_set: TensorDataset, batch: int) -> None:
        super().__init__()
        self.train_set, self.batch = train_set, batch
        self.model = Classifier()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def train_dataloader(self) -> DataLoader:
        # Lightning tells this sampler the epoch: another order in each, the same after a restart.
        processes, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(self.train_set, processes, rank, drop_last=True)
        return DataLoader(self.train_set, self.batch // processes, sampler=sampler, drop_last=True)


class Report(Callback):
    """Prints a line after each epoch."""

    def __init__(self, test_set: TensorDataset) -> None:
        self.test_set = test_set

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Digits) -> None:
        loss, right = trainer.callback_metrics["loss"].item(), accuracy(module.model, self.test_set)
        trainer.print(f"epoch {trainer.current_epoch + 1}: loss {loss:.6f}, test accuracy {right:.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="of all processes together")
    parser.add_argument("--devices", type=int, default=1, help="processes, a GPU each where there are GPUs")
    parser.add_argument("--checkpoint", type=Path, default=Path("out/lightning"), help="a folder")
    args = parser.parse_args()

    lightning.seed_everything(0)
    train_set, test_set = load()
    module = Digits(train_set, args.batch)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        devices=args.devices,
        callbacks=[Report(test_set), ModelCheckpoint(args.checkpoint, save_last=True)],
        default_root_dir=args.checkpoint,
        logger=False,
        enable_progress_bar=False,
    )
    last = args.checkpoint / "last.ckpt"
    if last.exists():
        trainer.print(f"{last}: going on")
    trainer.fit(module, ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    main()
