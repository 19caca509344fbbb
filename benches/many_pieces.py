"""Memory and time of checkpoints in very many pieces, which torch's own classes describe.

    tests/with_torch.sh benches/many_pieces.py target/release/vlmerge FOLDER [PIECES ...] [--convert]

Each checkpoint has tensors of 64 ranks x 32 columns in bf16, of which each of 64 ranks has a row: with 150,000 pieces
2,344 tensors. `.metadata` is what `pickle` writes of `torch.distributed.checkpoint.metadata.Metadata`; the files of ranks
hold the same piece of `torch.save` again and again. Prints seconds and VmHWM of `inspect`, and with --convert of `convert`,
whose result is compared in its sizes.
"""

import io
import os
import pathlib
import pickle
import shutil
import sys

import measured

RANKS, COLUMNS = 64, 32


def write(folder, n_pieces):
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
    from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata

    buffer = io.BytesIO()
    torch.save(torch.arange(COLUMNS).bfloat16()[None], buffer)
    piece = buffer.getvalue()
    n_tensors = -(-n_pieces // RANKS)
    folder.mkdir(parents=True)
    for rank in range(RANKS):
        (folder / f"__{rank}_0.distcp").write_bytes(piece * n_tensors)
    properties = TensorProperties(dtype=torch.bfloat16)
    tensors, places, paths = {}, {}, {}
    for number in range(n_tensors):
        name = f"model.layers.{number}.self_attn.q_proj.weight"
        size, starts = torch.Size([1, COLUMNS]), [torch.Size([rank, 0]) for rank in range(RANKS)]
        chunks = [ChunkStorageMetadata(offsets=torch.Size(start), sizes=torch.Size(size)) for start in starts]
        tensors[name] = TensorStorageMetadata(properties=properties, size=torch.Size([RANKS, COLUMNS]), chunks=chunks)
        paths[name] = ("model", name[len("model.") :])
    for rank in range(RANKS):
        for number, name in enumerate(tensors):
            index = MetadataIndex(name, torch.Size([rank, 0]), 0)
            places[index] = _StorageInfo(f"__{rank}_0.distcp", number * len(piece), len(piece))
    metadata = Metadata(state_dict_metadata=tensors, planner_data=paths, storage_data=places)
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(metadata, file)
    return n_tensors * RANKS


def main():
    if sys.argv[1] == "--write":
        return print(write(pathlib.Path(sys.argv[2]), int(sys.argv[3])))
    program, home = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2])
    numbers = [int(number) for number in sys.argv[3:] if number != "--convert"] or [150_000, 1_000_000]
    for n_pieces in numbers:
        folder, out = home / "many", home / "many.safetensors"
        shutil.rmtree(folder, ignore_errors=True)
        # Not in the process that measures: what it has in memory would count.
        measured.run([sys.executable, __file__, "--write", folder, str(n_pieces)], started=lambda program: True)
        n_bytes = (folder / ".metadata").stat().st_size
        commands = {"inspect": [program, "inspect", folder, "--json"]}
        if "--convert" in sys.argv:
            commands["convert"] = [program, "convert", folder, out, "--force", "--no-hash", "--no-sync"]
        for name, command in commands.items():
            seconds, _, peak = measured.run(command)
            print(f"{n_pieces} pieces, .metadata of {n_bytes / 2**20:.0f} MiB, {name}: {seconds:.1f} s, {peak / 2**20:.0f} MiB", flush=True)
        if "--convert" in sys.argv:
            wanted = -(-n_pieces // RANKS) * RANKS * COLUMNS * 2
            assert wanted < out.stat().st_size < wanted * 2, out.stat().st_size
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
