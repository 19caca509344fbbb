//! Reasons to refuse a conversion.

use std::path::PathBuf;

/// A reason to refuse a conversion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConversionFault {
    /// Geometric spacing has no solution for a smaller window.
    #[error(
        "`{key}` cannot shrink from a window of {from} to one of {to} patches by geometric spacing"
    )]
    CannotShrink {
        /// The table.
        key: String,
        /// Patches along a side of the old window.
        from: usize,
        /// Patches along a side of the new window.
        to: usize,
    },
    /// A table of image positions that is no square of patches and a class token.
    #[error("`{key}` has {rows} rows, which are no square of patches and a class token")]
    NotSquare {
        /// The table.
        key: String,
        /// Its rows.
        rows: usize,
    },
    /// A size that a conversion needs cannot be read off the checkpoint.
    #[error("the {what} of this checkpoint is not known")]
    UnknownSize {
        /// The size.
        what: &'static str,
    },
    /// An image is not a whole number of patches.
    #[error("{image_size} pixels are no multiple of the patch size {patch}")]
    ImageSize {
        /// Side of the image in pixels.
        image_size: usize,
        /// Side of a patch in pixels.
        patch: usize,
    },
    /// An image has more patches than any model could run.
    #[error("{image_size} pixels are {window} patches a side; at most {limit}")]
    ImageTooLarge {
        /// Side of the image in pixels.
        image_size: usize,
        /// Side of the image in patches.
        window: usize,
        /// The largest number of patches a side.
        limit: usize,
    },
    /// A position table has not the rows that its window asks for.
    #[error("`{key}` of shape {shape:?} is no position table for a window of {window} patches")]
    TableShape {
        /// The table.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Patches along a side of the window.
        window: usize,
    },
    /// A bias table has less room for text than the settings say.
    #[error(
        "`{key}` has {rows} rows, which leave no square window beside {text_table_len} text positions"
    )]
    TextTableLen {
        /// The table.
        key: String,
        /// Its rows.
        rows: usize,
        /// Text positions by the settings.
        text_table_len: usize,
    },
    /// Text positions can be cut, but not invented.
    #[error("cannot grow from {from} to {to} text positions")]
    TextTooShort {
        /// Positions there are.
        from: usize,
        /// Positions asked for.
        to: usize,
    },
    /// A text table has not as many rows as there are text positions.
    #[error("`{key}` of shape {shape:?} is no table of {text_len} text positions")]
    TextShape {
        /// The table.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Text positions.
        text_len: usize,
    },
    /// The outer token types are neither two nor three.
    #[error("`{key}` of shape {shape:?} has neither 2 nor 3 token types")]
    TokenTypes {
        /// The table.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A vocabulary can get tokens, but not lose any.
    #[error(
        "`{key}` has {from} tokens and cannot shrink to {to}: give the tokens that the file has, or more"
    )]
    FewerTokens {
        /// The table, or the head.
        key: String,
        /// Tokens there are.
        from: usize,
        /// Tokens asked for.
        to: usize,
    },
    /// A model for single images from one that was made for pairs.
    #[error(
        "`{key}` of shape {shape:?} is for pairs of images; a model for one image has 2 token types"
    )]
    PairTypes {
        /// The table.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Two output tensors would have the same name.
    #[error("{}: two tensors would be called `{key}`", path.display())]
    NameTaken {
        /// The checkpoint.
        path: PathBuf,
        /// The name.
        key: String,
    },
    /// A key means something that another spelling or form cannot say.
    #[error("{}: `{key}` has no counterpart in {target}: {why}", path.display())]
    NoCounterpart {
        /// The checkpoint.
        path: PathBuf,
        /// The key.
        key: String,
        /// The spelling or form asked for.
        target: &'static str,
        /// The obstacle.
        why: &'static str,
    },
    /// Names of a library that no row of its table has.
    #[error("{}: it has the names of {whose}, and {n} others: `{}`{}", path.display(), keys.join("`, `"),
        if *n > keys.len() { ", …" } else { "" })]
    UnknownNames {
        /// The checkpoint.
        path: PathBuf,
        /// The library and the model.
        whose: &'static str,
        /// How many.
        n: usize,
        /// The first of them.
        keys: Vec<String>,
    },
    /// A mixture whose experts are of no kind that has several spellings.
    #[error(
        "{}: the experts of `{mixture}` are not a gate, a value and a way out without biases, so they have no other \
         spelling", path.display()
    )]
    OtherMixture {
        /// The checkpoint.
        path: PathBuf,
        /// The first part of its tensors' names.
        mixture: String,
    },
    /// A number of experts that a mixture cannot be brought to.
    #[error("`{mixture}` has {n_experts} experts and cannot be given {keep}")]
    ExpertsLeft {
        /// The first part of its tensors' names.
        mixture: String,
        /// Experts there are; 1 of a dense network.
        n_experts: usize,
        /// Experts asked for.
        keep: usize,
    },
    /// A router picks among groups of experts, and a number of experts does not go with that.
    #[error(
        "`{mixture}` has {n_experts} experts in {n_groups} groups (`n_group` of config.json), so it can be given a multiple \
         of {n_groups}, at least {least}, and not {keep}"
    )]
    ExpertGroups {
        /// The first part of its tensors' names.
        mixture: String,
        /// Experts there are.
        n_experts: usize,
        /// Groups there are.
        n_groups: usize,
        /// The least that it can be given.
        least: usize,
        /// Experts asked for.
        keep: usize,
    },
    /// A number of experts for all mixtures together would break groups of equal sizes.
    #[error(
        "`{mixture}` has experts in groups of equal sizes (`n_group` of config.json), and a number for all mixtures \
         together would break the groups; leave out `--in-all`"
    )]
    UnevenGroups {
        /// The first part of its tensors' names.
        mixture: String,
    },
    /// Mixtures of experts that are to be in other blocks than the last ones.
    #[error(
        "{}: blocks {start}..{end} are not the last of {n_blocks}, where EVE has its mixtures of experts", path.display()
    )]
    LastBlocks {
        /// The checkpoint.
        path: PathBuf,
        /// The first block that is to have a mixture.
        start: usize,
        /// One past the last.
        end: usize,
        /// Blocks there are.
        n_blocks: usize,
    },
    /// The configuration cannot describe the converted model.
    #[error(
        "{}: {reason}; write a file instead of a folder, and the configuration by hand", path.display()
    )]
    Config {
        /// The configuration.
        path: PathBuf,
        /// The fact that it cannot state, as a clause.
        reason: String,
    },
    /// Experts are to be grouped by scores that nothing tells.
    #[error(
        "{}: lacks the gram matrix of the inputs of the router of `{mixture}`, whose scores group the experts; its name is that of the router's weight without `.weight`, and `vlmerge gram --shared` writes it for EVE", path.display()
    )]
    ScoresUnknown {
        /// The gram file.
        path: PathBuf,
        /// The mixture.
        mixture: String,
    },
    /// A mixture with more than a router and its experts, which one dense network cannot replace.
    #[error("{}: `{key}` serves all tokens beside the experts, and a dense network has no place for it", path.display())]
    SharedExpert {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        key: String,
    },
    /// A tensor that several parameters are packed in is not made of them.
    #[error("{}: `{key}`: {reason}", path.display())]
    Parts {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The fault.
        reason: String,
    },
    /// An argument of a run that no conversion reads, or without a value, or given twice.
    #[error(
        "`{given}` is no argument of a run of Megatron as NAME=VALUE; names are {known}, each once"
    )]
    UnknownArgument {
        /// The argument as given.
        given: String,
        /// The existing names.
        known: String,
    },
    /// An argument of a run is another in its files than the user says.
    #[error("{}: the run was started with {name}={found}; given is {given}", path.display())]
    OtherArgument {
        /// The checkpoint.
        path: PathBuf,
        /// The argument.
        name: String,
        /// The value that the user gives.
        given: String,
        /// The value in the files.
        found: String,
    },
    /// The files of a run lack an argument that decides what the weights are.
    #[error("{}: the arguments of the run do not say `{name}`; give it with --run-arg {name}=VALUE", path.display())]
    MissingArgument {
        /// The checkpoint.
        path: PathBuf,
        /// The argument.
        name: &'static str,
    },
    /// An argument of a run is of a model that has no counterpart.
    #[error("{}: the run has {name}={found}; wanted is {wanted}", path.display())]
    UnfitArgument {
        /// The checkpoint.
        path: PathBuf,
        /// The argument.
        name: &'static str,
        /// The value found.
        found: String,
        /// The value that is needed.
        wanted: &'static str,
    },
    /// A conversion is not defined for this family or form.
    #[error("{}: a checkpoint of layout {layout} cannot be {wanted}", path.display())]
    NoSuchConversion {
        /// The checkpoint.
        path: PathBuf,
        /// Its layout.
        layout: &'static str,
        /// The requested change, as a participle.
        wanted: &'static str,
    },
    /// The first fusion block is neither stored nor usual for this depth.
    #[error("{}: the first fusion block is not known", path.display())]
    FusionStartUnknown {
        /// The checkpoint.
        path: PathBuf,
    },
    /// The first fusion block asked for is not one of the model's.
    #[error("there is no fusion start {fusion_start} in a model of {n_blocks} blocks")]
    FusionStartRange {
        /// The block asked for.
        fusion_start: usize,
        /// Blocks of the model.
        n_blocks: usize,
    },
    /// A cubic spline needs more points than the table has.
    #[error("`{key}` has a window of {window} patches, too small for a cubic spline")]
    WindowTooSmall {
        /// The table.
        key: String,
        /// Patches along a side of the window.
        window: usize,
    },
}
