"""Tokens of images by a discrete autoencoder's encoder of tiny random weights, computed with torch.

    tests/with_torch.sh tests/dvae_reference.py fixtures/dvae

Writes `model.safetensors`, a model that carries the encoder as `d_vae` (as pre-training checkpoints do), and
`expected.safetensors`: images, scores and tokens. The formula, of the DALL-E paper's appendix A: a convolution of
kernel 7; four groups of two blocks, the image halved by its maxima between groups; ReLU and a convolution of kernel 1 to
the scores. A block adds to its input (or to a 1 x 1 convolution of it, where the width changes) one by the square of
the number of all blocks times four convolutions (3, 3, 3, 1) of a quarter of the width, each after a ReLU.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch.nn import functional

WIDTHS = (8, 8, 12, 16, 24)  # after the input, then after each group
VOCABULARY = 50
GROUPS, BLOCKS = 4, 2


def weights():
    generator = torch.Generator().manual_seed(20210224)
    made = {}

    def convolution(name, inputs, outputs, kernel, gain=1.0):
        deviation = gain * (2 / (inputs * kernel**2)) ** 0.5
        made[f"{name}.w"] = deviation * torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        made[f"{name}.b"] = 0.3 * torch.randn(outputs, generator=generator)

    convolution("blocks.input", 3, WIDTHS[0], 7)
    for group in range(GROUPS):
        inputs, outputs = WIDTHS[group], WIDTHS[group + 1]
        for block in range(BLOCKS):
            name = f"blocks.group_{group + 1}.block_{block + 1}"
            inputs = outputs if block else inputs
            if inputs != outputs:
                convolution(f"{name}.id_path", inputs, outputs, 1)
            hidden = outputs // 4
            # Large, or one sixty-fourth of it would not be seen.
            for i, (a, b, kernel) in enumerate([(inputs, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3)]):
                convolution(f"{name}.res_path.conv_{i + 1}", a, b, kernel, 2.0)
            convolution(f"{name}.res_path.conv_4", hidden, outputs, 1, 6.0)
    convolution("blocks.output.conv", WIDTHS[-1], VOCABULARY, 1)
    return made


def scores(made, image):
    def convolution(name, x):
        w = made[f"{name}.w"].double()
        return functional.conv2d(x, w, made[f"{name}.b"].double(), padding=w.shape[-1] // 2)

    x = convolution("blocks.input", image.double())
    for group in range(GROUPS):
        if group:
            x = functional.max_pool2d(x, 2)
        for block in range(BLOCKS):
            name = f"blocks.group_{group + 1}.block_{block + 1}"
            branch = x
            for i in range(4):
                branch = convolution(f"{name}.res_path.conv_{i + 1}", functional.relu(branch))
            straight = convolution(f"{name}.id_path", x) if f"{name}.id_path.w" in made else x
            x = straight + branch / (GROUPS * BLOCKS) ** 2
    return convolution("blocks.output.conv", functional.relu(x))


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    made = weights()
    image = 0.1 + 0.8 * torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(5))
    expected = scores(made, image)
    top = expected.topk(2, dim=1).values
    print(f"tokens: {len(expected.argmax(1).unique())} of {VOCABULARY}; least lead {float((top[:, 0] - top[:, 1]).min()):.2e}")
    others = {"mim_score.bias": torch.zeros(VOCABULARY), "d_vae.decoder.blocks.input.w": torch.zeros(4, VOCABULARY, 1, 1)}
    save_file({f"d_vae.encoder.{name}": tensor for name, tensor in made.items()} | others, out / "model.safetensors")
    save_file(
        {"image": image, "scores": expected.float(), "tokens": expected.argmax(1).to(torch.int64)},
        out / "expected.safetensors",
    )


if __name__ == "__main__":
    main()
