"""Train, write the model to an ONNX file, run the file in ONNX Runtime and compare.

    python examples/onnx_export.py

The file holds the standard ONNX operator GRU: whoever runs it needs neither trigru nor torch.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from data import CHANNELS, STEPS, load
from model import Classifier
from torch.utils.data import DataLoader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("out/digits.onnx"))
    args = parser.parse_args()

    train_set, test_set = load()
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(args.epochs):
        for x, y in DataLoader(train_set, args.batch, shuffle=True, drop_last=True):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.4f}", flush=True)

    model.eval()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (torch.zeros(2, STEPS, CHANNELS),),
        args.out,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=[{0: torch.export.Dim("batch")}],
        dynamo=True,
        external_data=False,
        verbose=False,
    )

    x, y = test_set.tensors
    session = onnxruntime.InferenceSession(args.out, providers=["CPUExecutionProvider"])
    (got,) = session.run(["logits"], {"pixels": x.numpy()})
    with torch.no_grad():
        want = model(x).numpy()
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    print(f"test accuracy {np.mean(got.argmax(-1) == y.numpy()):.2%} by ONNX Runtime", end=", ")
    print(f"{np.mean(want.argmax(-1) == y.numpy()):.2%} by torch")
    print(f"largest difference of a logit {np.abs(got - want).max():.1e}, largest logit {np.abs(want).max():.1f}")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main()
