"""A recurrent policy for CartPole without velocities, by PPO: all episodes of a rollout in one call, with `reset`.

    python examples/recurrent_policy.py

The policy sees where cart and pole are, not how fast they move, so it has to remember. Episodes end anywhere in a
rollout. At the end an update is timed, and the same one with the loops that people write: a step at a time with the
state times (1 - done), and a call of nn.GRU for every stretch between two steps at which any episode begins.
"""

import argparse
import copy
import itertools
import time

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trigru

ENVS, STEPS, HIDDEN = 32, 128, 64
SEEN = [0, 2]  # of position, velocity, angle, angular velocity
SCALE = torch.tensor([2.4, 0.2])
REWARD = 0.05  # of a step, so that values are not far from 1


class Policy(nn.Module):
    """Logits of the two actions and a value, (steps, envs, 3), and the states after the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = trigru.GRU(len(SEEN), HIDDEN)
        self.heads = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        output, state = self.gru(x, state, reset=begins)
        return self.heads(output), state


class StepByStep(nn.Module):
    """The same with nn.GRU, a step at a time."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.gru = nn.GRU(len(SEEN), HIDDEN)
        self.gru.load_state_dict(policy.gru.state_dict())
        self.heads = copy.deepcopy(policy.heads)

    def forward(self, x: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for x_t, begins_t in zip(x, begins, strict=True):
            output, state = self.gru(x_t.unsqueeze(0), state * ~begins_t[None, :, None])
            outputs.append(output)
        return self.heads(torch.cat(outputs)), state


class BySegments(StepByStep):
    """The same with a call for every stretch of steps between two at which any episode begins."""

    def forward(self, x: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        cuts = [0, *(t for t in begins.any(1).nonzero().flatten().tolist() if t), len(x)]
        outputs = []
        for first, last in itertools.pairwise(cuts):
            output, state = self.gru(x[first:last], state * ~begins[first][None, :, None])
            outputs.append(output)
        return self.heads(torch.cat(outputs)), state


class Rollouts:
    """Steps of ENVS environments, each rollout from where the last one stopped."""

    def __init__(self, seed: int) -> None:
        self.envs = gymnasium.make_vec("CartPole-v1", ENVS, vectorization_mode="vector_entry_point")
        self.x = self.seen(self.envs.reset(seed=seed)[0])
        self.state = torch.zeros(1, ENVS, HIDDEN)
        self.begins = torch.ones(ENVS, dtype=torch.bool)
        self.over = torch.zeros(ENVS, dtype=torch.bool)
        self.score, self.scores = np.zeros(ENVS), []

    @staticmethod
    def seen(observation: np.ndarray) -> Tensor:
        return torch.from_numpy(observation[:, SEEN]) / SCALE

    @torch.no_grad()
    def next(self, policy: Policy) -> dict[str, Tensor]:
        """(STEPS, ENVS) of each; the first state, (1, ENVS, HIDDEN)."""
        first, rows = self.state, []
        for _ in range(STEPS):
            out, self.state = policy(self.x[None], self.state, self.begins[None])
            action = torch.distributions.Categorical(logits=out[0, :, :2]).sample()
            observation, reward, terminated, truncated, _ = self.envs.step(action.numpy())
            row = {"x": self.x, "begins": self.begins, "out": out[0], "action": action}
            row |= {"reward": torch.from_numpy(reward) * REWARD, "terminated": torch.from_numpy(terminated.copy())}
            # The step after an episode's last one begins another and does nothing else: not to be learned from.
            row["over"], self.begins = self.over, self.over
            self.over = torch.from_numpy(terminated | truncated)
            row["done"] = self.over
            self.x = self.seen(observation)
            rows.append(row)
            self.score += reward
            self.scores += self.score[self.over.numpy()].tolist()
            self.score[self.over.numpy()] = 0
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        value = policy(self.x[None], self.state, self.begins[None])[0][..., 2]
        return found | {"state": first, "last_value": value}


def advantages(rollout: dict[str, Tensor], discount: float = 0.99, decay: float = 0.95) -> Tensor:
    """Generalised advantage estimates, (STEPS, ENVS)."""
    values = torch.cat([rollout["out"][..., 2], rollout["last_value"]])
    found, following = torch.zeros(STEPS, ENVS), torch.zeros(ENVS)
    for t in reversed(range(STEPS)):
        error = rollout["reward"][t] + discount * values[t + 1] * ~rollout["terminated"][t] - values[t]
        found[t] = following = error + discount * decay * following * ~rollout["done"][t]
    return found


def loss_of(policy: nn.Module, rollout: dict[str, Tensor], advantage: Tensor) -> Tensor:
    """PPO's."""
    out, _ = policy(rollout["x"], rollout["state"], rollout["begins"])
    used = ~rollout["over"]
    chosen = torch.distributions.Categorical(logits=out[..., :2])
    before = torch.distributions.Categorical(logits=rollout["out"][..., :2])
    ratio = (chosen.log_prob(rollout["action"]) - before.log_prob(rollout["action"])).exp()
    scaled = (advantage - advantage[used].mean()) / (advantage[used].std() + 1e-6)
    gain = torch.minimum(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled)
    wanted = advantage + rollout["out"][..., 2]
    error = F.smooth_l1_loss(out[..., 2], wanted, reduction="none")
    return (error * 0.5 - gain - 0.01 * chosen.entropy())[used].mean()


def seconds(
    policies: list[nn.Module], rollout: dict[str, Tensor], advantage: Tensor
) -> list[tuple[float, list[Tensor]]]:
    """Of each policy the shortest of some forwards and backwards, taken in turns, and the gradients."""
    taken: list[list[float]] = [[] for _ in policies]
    grads: list[list[Tensor]] = [[] for _ in policies]
    for number in list(range(len(policies))) * 15:
        start = time.perf_counter()
        loss = loss_of(policies[number], rollout, advantage)
        grads[number] = list(torch.autograd.grad(loss, list(policies[number].parameters())))
        taken[number].append(time.perf_counter() - start)
    return [(min(times), found) for times, found in zip(taken, grads, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--parts", type=int, default=4, help="updates an epoch, each on some of the environments")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    policy, rollouts, first = Policy(), Rollouts(args.seed), None
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for number in range(1, args.rollouts + 1):
        rollout = rollouts.next(policy)
        advantage = advantages(rollout)
        first = first or (rollout, advantage)
        for rows in (rows for _ in range(args.epochs) for rows in torch.randperm(ENVS).chunk(args.parts)):
            loss = loss_of(policy, {name: x[:, rows] for name, x in rollout.items()}, advantage[:, rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
        if number % 5 == 0 or number == args.rollouts:
            last = rollouts.scores[-50:]
            print(f"rollout {number}: {np.mean(last):.0f} steps an episode, mean of the last {len(last)}", flush=True)

    rollout, advantage = first
    share = rollout["begins"].float().mean().item()
    print(
        f"an update on the first rollout, {STEPS} steps of {ENVS} environments, {share:.1%} of them an episode's first:"
    )
    others = {"nn.GRU step by step": StepByStep(policy), "nn.GRU by stretches": BySegments(policy)}
    (ours, want), *found = seconds([policy, *others.values()], rollout, advantage)
    print(f"  trigru.GRU with reset: {ours * 1e3:.1f} ms")
    for name, (theirs, grads) in zip(others, found, strict=True):
        for got, wanted in zip(grads, want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)
        print(f"  {name}: {theirs * 1e3:.1f} ms, the same gradients: speed-up {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
