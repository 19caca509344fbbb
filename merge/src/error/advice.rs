//! Hints for errors, and the errors that wrong arguments cause.

use std::io::ErrorKind;

use super::{
    ConversionFault, Error, MaskFault, MoeFault, SplitFault, TorchFault, TrainerFault,
    TransplantFault, WriteFault,
};
use crate::io::ZipFault;
use crate::methods::Member;

impl Error {
    /// Whether the fault lies in the arguments or the recipe (exit code 2) rather than in a file.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Merge(fault) => return fault.is_usage(),
            Self::Slices(_) => return true,
            Self::Statistics(fault) => return fault.is_usage(),
            Self::Activations(fault) => return fault.is_usage(),
            Self::Remote(fault) => return fault.is_usage(),
            Self::Several(faults) => return faults.iter().any(Self::is_usage),
            _ => {}
        }
        matches!(
            self,
            Self::BadRecipe { .. }
                | Self::UnknownMethod { .. }
                | Self::UnknownParameter { .. }
                | Self::BadParameter { .. }
                | Self::MethodNeeds { .. }
                | Self::MethodHasNoUse { .. }
                | Self::ModelCount { .. }
                | Self::BadExpertChoice { .. }
                | Self::NoPublishedChoice { .. }
                | Self::UnknownLayout { .. }
                | Self::Write(WriteFault::UnknownOutput { .. })
                | Self::Write(WriteFault::CannotShard { .. })
                | Self::UnfitSizes { .. }
                | Self::Moe(
                    MoeFault::NoArchitecture { .. }
                        | MoeFault::NoForward { .. }
                        | MoeFault::NoDirection { .. }
                )
                | Self::Transplant(
                    TransplantFault::OutOfRange { .. }
                        | TransplantFault::FewShared { .. }
                        | TransplantFault::NoSplitter
                )
                | Self::Masks(
                    MaskFault::None | MaskFault::RulesDiffer { .. } | MaskFault::UnknownTask { .. }
                )
        )
    }

    /// A hint for the user, where one helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Conversion(ConversionFault::CannotShrink { .. }) | Self::Conversion(ConversionFault::WindowTooSmall { .. }) => {
                Some("pass --resize bicubic".into())
            }
            Self::Conversion(ConversionFault::UnknownSize { what: "image size" }) => Some(
                "if the relative position bias table has room for another number of text positions \
                 than the published 196, pass it as --text-table-len"
                    .into(),
            ),
            Self::Conversion(ConversionFault::UnknownNames { .. }) => {
                Some("remove tensors that are no weights of the model from the file".into())
            }
            Self::Conversion(ConversionFault::FusionStartUnknown { .. }) => Some("pass --fusion-start".into()),
            Self::Conversion(ConversionFault::NoSuchConversion { .. }) => {
                Some("`vlmerge inspect` explains the layout; BEiT and seeds go through `vlmerge expand`, \
                      modality-specific checkpoints through a merge".into())
            }
            Self::Moe(MoeFault::NoForward { .. }) => {
                Some("use gate_mode: cheap_embed, which needs the embeddings alone".into())
            }
            Self::Transplant(TransplantFault::NoTokenizer { .. }) => Some(
                "transformers writes it with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`".into(),
            ),
            Self::Transplant(TransplantFault::FewShared { .. }) => {
                Some("pass a smaller --k, or --method subword".into())
            }
            Self::Merge(fault) => fault.hint().map(str::to_owned),
            Self::Slices(fault) => fault.hint().map(str::to_owned),
            Self::Statistics(fault) => Some(fault.hint().to_owned()),
            Self::Activations(fault) => fault.hint().map(str::to_owned),
            Self::Masks(MaskFault::Foreign { .. }) => {
                Some("`vlmerge merge RECIPE --out FILE --masks FILE` writes both, with provenance".into())
            }
            Self::Masks(MaskFault::OtherBase { .. }) => {
                Some("give the model that the recipe of the merge names as `base_model`".into())
            }
            Self::Adapter(fault) => fault.hint().map(str::to_owned),
            Self::Export(fault) => fault.hint().map(str::to_owned),
            Self::Gguf(fault) => fault.hint().map(str::to_owned),
            Self::Quantization(fault) => fault.hint().map(str::to_owned),
            Self::Remote(fault) => fault.hint().map(str::to_owned),
            Self::Several(faults) => faults.iter().find_map(Self::hint),
            Self::InputChanged { .. } => Some("run it again when no other program writes the file".into()),
            Self::UnknownFormat { looks_like, .. } if looks_like.contains("git-lfs") => {
                Some("run `git lfs pull` in its folder to fetch the file itself".into())
            }
            Self::UnknownFormat { looks_like, .. } if looks_like.contains("web page") => Some(
                "the address is that of a page about the file; on the hub files are under `resolve` instead of `blob`"
                    .into(),
            ),
            Self::Stopped { .. } => Some("the same command goes on with the next file".into()),
            Self::TargetExists { .. } => Some("pass --force to replace it".into()),
            Self::SingularGram { .. } => Some(
                "cache the gram matrices from more data, or pass --shrink below 1 or a --ridge"
                    .into(),
            ),
            Self::MissingGram { member: Member::Expert(_), .. } => Some(
                "were the gram matrices cached for another task? --for names the task whose \
                 experts are merged"
                    .into(),
            ),
            Self::MissingGram { .. } => Some(
                "`vlmerge gram --shared` sums the inputs of all layers; `on_missing_gram: mean` in the \
                 recipe takes the plain mean of such weights"
                    .into(),
            ),
            Self::NonFinite { .. } => Some("pass --allow-non-finite to write it all the same".into()),
            Self::NoShare { .. } => Some(
                "give `weights` for each expert in a recipe, or choose experts with --for".into(),
            ),
            Self::NothingToMerge { .. } => Some(
                "`vlmerge inspect` shows the kind of the checkpoint; an agnostic one is merged already"
                    .into(),
            ),
            Self::LayoutMismatch { .. } => {
                Some("leave `layout` out to let the program find the family".into())
            }
            Self::UnknownLayout { .. } => {
                Some(format!("layouts are {}", crate::layouts::NAMES.join(", ")))
            }
            Self::Write(WriteFault::DiskSpace { .. }) => Some("free some space or choose another disk".into()),
            Self::Io { source, .. } if source.kind() == ErrorKind::StorageFull => {
                Some("the disk is full: free some space or choose another disk".into())
            }
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Some("check the permissions of the file and its folder".into())
            }
            Self::Write(WriteFault::NotOurs { .. }) => Some("check the file, then remove it".into()),
            Self::Write(WriteFault::InputInTheWay { .. }) => Some("choose another folder for the output".into()),
            Self::Write(WriteFault::MissingFolder { .. }) => Some("create it, or correct the path".into()),
            Self::Split(SplitFault::MissingShard { .. }) | Self::Split(SplitFault::LoneShard { .. }) => {
                Some("fetch or copy the whole folder again".into())
            }
            Self::Split(SplitFault::SeveralModels { .. }) => Some("name one of the files".into()),
            Self::Trainer(fault) => match &**fault {
                TrainerFault::OnePart { folder, .. } => Some(format!("name the folder: {}", folder.display())),
                TrainerFault::SeveralKinds { .. } => Some("move the files of each into a folder of its own".into()),
                TrainerFault::SeveralFolders { .. } => Some("name one of the folders".into()),
                TrainerFault::Remote { .. } => Some("fetch the folder, then name it here".into()),
                TrainerFault::Megatron(fault) => fault.hint().map(str::to_owned),
                TrainerFault::Zero(fault) => fault.hint().map(str::to_owned),
                TrainerFault::MissingFile { .. } | TrainerFault::MissingRanks { .. } => {
                    Some("fetch or copy the whole folder again".into())
                }
                TrainerFault::SeveralWorlds { .. } => Some("move the files of each world into a folder of its own".into()),
                TrainerFault::PartOfTensor { .. } => {
                    Some("put the files of all ranks into one folder, under the names that the trainer gave them".into())
                }
                TrainerFault::FlatParameter { .. } => {
                    Some("save with StateDictType.SHARDED_STATE_DICT or FULL_STATE_DICT instead of the local one".into())
                }
                _ => None,
            },
            Self::Write(WriteFault::NoSuchDType { .. }) => Some("write .safetensors".into()),
            Self::Write(WriteFault::CannotShard { .. }) => Some("write .safetensors or .bin".into()),
            Self::Write(WriteFault::TooManyParts { .. }) => {
                Some("give a larger --max-shard-size".into())
            }
            Self::Write(WriteFault::UnknownOutput { .. }) => {
                Some(
                    "end it in .safetensors, .pt, .pth, .bin or .ckpt; only verbs with --container take other names".into(),
                )
            }
            Self::Torch(TorchFault::UnsafePickle { .. }) => Some(
                "nothing was run; do not load this file with torch.load(weights_only=False)".into(),
            ),
            Self::Torch(TorchFault::PickledObject { .. }) => {
                Some("save its state_dict() instead: torch.save(model.state_dict(), path)".into())
            }
            Self::Torch(
                TorchFault::Script { .. }
                | TorchFault::ScriptWithoutTensors { .. }
                | TorchFault::Zip {
                    fault: ZipFault::OldScript,
                    ..
                },
            ) => Some("save its weights instead: torch.save(torch.jit.load(path).state_dict(), other)".into()),
            Self::Torch(TorchFault::Zip {
                fault: ZipFault::Compressed(_),
                ..
            }) => Some("pack the archive again without compression, e.g. with zip -0".into()),
            Self::Torch(TorchFault::Checksum { .. }) => Some("fetch the file again and compare its hash".into()),
            Self::NothingToCompare { .. } => Some(
                "experts are compared within a modality-specific checkpoint; \
                 otherwise give two checkpoints"
                    .into(),
            ),
            Self::CompareShapes { .. } => {
                Some("`vlmerge convert` resizes the image window and the text length".into())
            }
            _ => None,
        }
    }
}
