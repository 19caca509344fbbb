"""A golden set of residual networks: narrow ones of torchvision's blocks under its names, what torch makes of them, and the
statistics that batch norms keep after passes with `momentum=None`.

    tests/with_torch.sh tests/torchvision_reference.py --write fixtures/resnet [--seed 3]
"""

import argparse
import json
import pathlib

import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

CLASSES = 5
STEM = 6
# Block, planes of the four stages, and further settings of its blocks.
FORMS = {
    "basic": (BasicBlock, [6, 8, 10, 12], {}),
    "bottleneck": (Bottleneck, [4, 4, 6, 6], {}),
    "grouped": (Bottleneck, [4, 4, 6, 6], dict(groups=2, base_width=64)),
}
DEPTHS = [2, 1, 1, 1]


class Narrow(nn.Module):
    """As torchvision's ResNet, with other widths."""

    def __init__(self, block, planes, settings):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width = STEM
        for stage, (plane, depth) in enumerate(zip(planes, DEPTHS)):
            blocks = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                around = None
                if stride > 1 or width != plane * block.expansion:
                    around = nn.Sequential(
                        nn.Conv2d(width, plane * block.expansion, 1, stride=stride, bias=False),
                        nn.BatchNorm2d(plane * block.expansion),
                    )
                blocks.append(block(width, plane, stride, around, **settings))
                width = plane * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width, CLASSES)

    def features(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def model_of(form, seed):
    torch.manual_seed(seed)
    model = Narrow(*FORMS[form]).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape) if tensor.is_floating_point() else None
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif "bn" in name and name.endswith("weight") or name.endswith("downsample.1.weight"):
                tensor.copy_(1 + 0.2 * noise)
            elif name.endswith("conv1.weight") or "conv" in name or name.endswith("downsample.0.weight"):
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(0.3 * noise)
    return model


def forward(model, images):
    with torch.no_grad():
        features = model.features(images)
        pooled = features.mean((2, 3))
        return {"features": features.contiguous(), "pooled": pooled.contiguous(), "logits": model.fc(pooled).contiguous()}


def statistics(model, batches):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    model.eval()
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


def write(target, seed):
    for folder in ["forward", "statistics"]:
        (target / folder).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    images = torch.randn(5, 3, 44, 38)
    save_file({"pixel_values": images}, target / "inputs.safetensors")
    cases = []
    for number, form in enumerate(FORMS):
        model = model_of(form, seed + number)
        save_file(model.state_dict(), target / f"{form}.safetensors")
        save_file(forward(model, images), target / f"forward/{form}.safetensors")
        cases.append({
            "id": f"forward/{form}", "op": "forward", "model": f"{form}.safetensors", "input": "inputs.safetensors",
            "expected": f"forward/{form}.safetensors", "tolerance": {"atol": 2e-5, "rtol": 2e-5},
        })
        sizes = [3, 2]
        found = statistics(model, images.split(sizes))
        save_file(found, target / f"statistics/{form}.safetensors")
        cases.append({
            "id": f"batch_statistics/{form}", "op": "batch_statistics", "model": f"{form}.safetensors",
            "input": "inputs.safetensors", "expected": f"statistics/{form}.safetensors", "params": {"batches": sizes},
            "tolerance": {"atol": 2e-5, "rtol": 2e-5},
        })
    versions = {"torchvision": torchvision.__version__.split("+")[0], "torch": torch.__version__.split("+")[0]}
    manifest = {"versions": versions, "seed": seed, "cases": cases}
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (target / "config.json").write_text(json.dumps({"classes": CLASSES}) + "\n")
    print(f"{len(cases)} cases in {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    write(arguments.write, arguments.seed)
