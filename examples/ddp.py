"""DistributedDataParallel: trigru.GRU needs nothing that another module would not.

    torchrun --nproc-per-node 2 examples/ddp.py

Each of N processes takes a batch of 64 / N, and DDP averages their gradients, so the loss goes down as in one process
(--nproc-per-node 1) with the whole batch. Started again, training goes on from its checkpoint.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from data import going_on, load
from model import Classifier, accuracy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="of all processes together")
    parser.add_argument("--checkpoint", type=Path, default=Path("out/ddp.pt"))
    args = parser.parse_args()

    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl")
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    train(args, device)
    dist.barrier()  # gloo's threads must let go of the last tensors before Python ends
    dist.destroy_process_group()


def train(args: argparse.Namespace, device: torch.device) -> None:
    rank, processes = dist.get_rank(), dist.get_world_size()
    train_set, test_set = load()
    sampler = DistributedSampler(train_set, drop_last=True)
    loader = DataLoader(train_set, args.batch // processes, sampler=sampler, drop_last=True)

    torch.manual_seed(0)
    model = DistributedDataParallel(Classifier().to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = 0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, map_location=device)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epochs"]
        if rank == 0:
            print(going_on(args.checkpoint, first, args.epochs))
    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)

    for epoch in range(first, args.epochs):
        sampler.set_epoch(epoch)  # another order in each epoch, the same after a restart
        total = torch.zeros((), device=device)
        for x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        dist.all_reduce(total)
        if rank == 0:
            mean = total.item() / (len(loader) * processes)
            print(
                f"epoch {epoch + 1}: loss {mean:.6f}, test accuracy {accuracy(model.module, test_set):.2%}", flush=True
            )
            saved = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
            torch.save(saved, args.checkpoint)


if __name__ == "__main__":
    main()
