"""FSDP2 (fully_shard): every process holds a share of each weight, of its gradient and of the optimizer's state.

    torchrun --nproc-per-node 2 examples/fsdp2.py

All processes write and read each epoch's checkpoint, a folder, together; another number of them can go on from it.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from data import going_on, load
from model import Classifier, accuracy
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="of all processes together")
    parser.add_argument("--checkpoint", type=Path, default=Path("out/fsdp2"))
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
    model = Classifier().to(device)
    fully_shard(model)  # of a large model: each of its parts first
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = 0
    complete = sorted(args.checkpoint.glob("epoch-*/.metadata"))  # written last
    if complete:
        of_model, of_optimizer = get_state_dict(model, optimizer)
        dcp.load({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=complete[-1].parent)
        set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer)
        first = int(complete[-1].parent.name.removeprefix("epoch-"))
        if rank == 0:
            print(going_on(args.checkpoint, first, args.epochs))

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
        right = accuracy(model, test_set)  # every process takes part: the weights are gathered for it
        if rank == 0:
            mean = total.item() / (len(loader) * processes)
            print(f"epoch {epoch + 1}: loss {mean:.6f}, test accuracy {right:.2%}", flush=True)
        of_model, of_optimizer = get_state_dict(model, optimizer)
        folder = args.checkpoint / f"epoch-{epoch + 1:04d}"
        dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder)


if __name__ == "__main__":
    main()
