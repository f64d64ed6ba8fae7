"""The trials of the benchmark `study` without emoreg, as the documentation of Ray Tune, Optuna, PyTorch and timm has it.

    python plain_study.py STIMULI.parquet TASK.parquet NUM_TRIALS

Each trial pre-trains an encoder on stimuli and trains it beside a fresh one on the task, their responses mixed by a balance.
Images are decoded once, before any trial, and shared through Ray's object store. A trial has one core, so its loader has no
workers, which would only take turns with it; Tune runs as many trials at once as there are cores. Prints the best validation
accuracy.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
import torch.nn.functional as F
from PIL import Image
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from torch import nn
from torch.utils.data import DataLoader, Dataset

os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
SIDE, BATCH_SIZE, EPOCHS = 32, 64, 3
NUM_STIMULI, NUM_TRAIN, NUM_VALIDATION = 250, 500, 500


def read(path, count):
    table = pq.read_table(path, columns=["image", "label"])
    chosen = table.take(np.random.default_rng(0).permutation(table.num_rows)[:count])
    contents = [cell["bytes"] if isinstance(cell, dict) else cell for cell in chosen.column("image").to_pylist()]
    images = [Image.open(io.BytesIO(content)).convert("RGB").resize((SIDE, SIDE)) for content in contents]
    return images, chosen.column("label").to_pylist()


def train(config, stimuli, task):
    from emoreg.torchvision_import import ensure_operators

    ensure_operators()  # needed where a CPU build of torch meets a CUDA build of torchvision, and nothing more
    import timm
    from torchvision import transforms

    to_tensor = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    augment = transforms.Compose(
        [transforms.RandomCrop(SIDE, padding=4, padding_mode="reflect"), transforms.RandomHorizontalFlip(), *to_tensor]
    )

    class Pictures(Dataset):
        def __init__(self, images, labels, transform):
            self.images, self.labels, self.transform = images, labels, transform

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.transform(self.images[index]), self.labels[index]

    def encoder():
        model = timm.create_model("test_resnet", num_classes=0)
        stem = model.conv1 if isinstance(model.conv1, nn.Conv2d) else model.conv1[0]
        stem.stride, model.maxpool = (1, 1), nn.Identity()  # as is done for small images
        return model

    def loader(images, labels, transform, shuffle):
        return DataLoader(Pictures(images, labels, transform), batch_size=BATCH_SIZE, shuffle=shuffle)

    emotional = encoder()
    width = emotional.num_features
    head = nn.Linear(width, 1 + max(stimuli[1]))
    parameters = [*emotional.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    emotional.train()
    for _ in range(config["epochs"]):
        for inputs, labels in loader(*stimuli, augment, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(head(emotional(inputs)), labels).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    plain, num_classes, balance = encoder(), 1 + max(task[1]), config["balance"]
    plain_head, emotional_head = nn.Linear(width, num_classes), nn.Linear(width, num_classes)
    modules = nn.ModuleList([plain, emotional, plain_head, emotional_head])

    def respond(inputs):
        return (1 - balance) * plain_head(plain(inputs)) + balance * emotional_head(emotional(inputs))

    train_loader = loader(task[0][:NUM_TRAIN], task[1][:NUM_TRAIN], augment, shuffle=True)
    val_loader = loader(task[0][NUM_TRAIN:], task[1][NUM_TRAIN:], transforms.Compose(to_tensor), shuffle=False)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train_loader))
    for _ in range(EPOCHS):
        modules.train()
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(respond(inputs), labels).backward()
            nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        modules.eval()
        correct = 0
        with torch.no_grad():
            for inputs, labels in val_loader:
                correct += (respond(inputs).argmax(1) == labels).sum().item()
        tune.report({"accuracy": correct / len(val_loader.dataset)})


if __name__ == "__main__":
    stimuli_file, task_file, num_trials = sys.argv[1:]
    stimuli, task = read(stimuli_file, NUM_STIMULI), read(task_file, NUM_TRAIN + NUM_VALIDATION)
    ray.init(log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, stimuli=stimuli, task=task), {"cpu": 1}),
            param_space={"balance": tune.uniform(0.05, 0.95), "epochs": tune.choice([2, 4, 8, 16])},
            tune_config=tune.TuneConfig(
                metric="accuracy", mode="max", search_alg=OptunaSearch(seed=0), num_samples=int(num_trials)
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
        assert results.num_errors == 0
        print(results.get_best_result().metrics["accuracy"])
