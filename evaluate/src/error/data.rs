//! Faults of data sets, with the file, the column and the row.

use std::path::PathBuf;

/// A fault of a data set, with the file, the column and the row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataFault {
    /// A name is no data set, or a data set of another kind.
    #[error("{name:?} is no data set of this kind; there are: {known}")]
    UnknownDataset {
        /// The name as given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The name of a data set is no folder's name.
    #[error(
        "{name:?} cannot be the folder of a data set; give a name without `..` and without a leading `/`"
    )]
    DatasetName {
        /// The name as given.
        name: String,
    },
    /// Folders of classes lack something, or hold something else.
    #[error("{}: {fault}", path.display())]
    Classes {
        /// The folder of the split.
        path: PathBuf,
        /// The fault, as a sentence.
        fault: String,
    },
    /// Packed files, or the files beside them, do not make a split.
    #[error("{}: {fault}", path.display())]
    Packed {
        /// The folder of the data set.
        path: PathBuf,
        /// The fault, as a sentence.
        fault: String,
    },
    /// A data set has no split of this name.
    #[error("{dataset} has no split {name:?}; there are: {known}")]
    UnknownSplit {
        /// The data set.
        dataset: &'static str,
        /// The name as given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A file that belongs to a split is not there.
    #[error("{}: holds no {names}", folder.display())]
    MissingTable {
        /// The folder.
        folder: PathBuf,
        /// The names that were looked for.
        names: String,
    },
    /// An arrow file is damaged or of a kind that is not read.
    #[error("{}: is not a readable arrow file: {fault}", path.display())]
    Arrow {
        /// The file.
        path: PathBuf,
        /// The fault, as a clause.
        fault: String,
    },
    /// A parquet file is damaged or of a kind that is not read.
    #[error("{}: is not a readable parquet file: {fault}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The fault, as a clause.
        fault: String,
    },
    /// A shard of a webdataset is damaged or of a kind that is not read.
    #[error("{}: is not a readable shard: {fault}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// The fault, as a clause.
        fault: String,
    },
    /// A member of a shard, or a sample by its key, is wrong.
    #[error("{}: {member}: {fault}", path.display())]
    Member {
        /// The file.
        path: PathBuf,
        /// The name of the member, or the key of the sample.
        member: String,
        /// The fault, as a clause.
        fault: String,
    },
    /// A table lacks a column.
    #[error("{}: has no column `{column}`; it has: {found}", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The columns it has.
        found: String,
    },
    /// A column is of another type.
    #[error("{}: column `{column}` is {found}, expected {expected}", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// The expected type, in words.
        expected: &'static str,
    },
    /// A row of a table is wrong.
    #[error("{}: row {row}: {fault}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, from 0.
        row: usize,
        /// The fault, with its column, as a clause.
        fault: String,
    },
    /// An image of the annotations has no text.
    #[error("{}: row {row}: image {image} has no {texts}", path.display())]
    NoText {
        /// The annotation file.
        path: PathBuf,
        /// The row, from 0.
        row: usize,
        /// The id of the image.
        image: String,
        /// The missing texts: `caption`, `region`.
        texts: &'static str,
    },
    /// Annotations hold nothing for the chosen data.
    #[error("{}: {fault}", path.display())]
    NoSuchExamples {
        /// The annotation file.
        path: PathBuf,
        /// The missing part, as a sentence.
        fault: String,
    },
    /// Pictures that a data set needs cannot be read or decoded.
    #[error("{}: {n} of its pictures cannot be used:\n{list}", path.display())]
    BadPictures {
        /// The file that was to hold them.
        path: PathBuf,
        /// Their number.
        n: usize,
        /// The first of them with their faults, one a line.
        list: String,
    },
    /// A file in the way was not made from these inputs.
    #[error("{}: is in the way: {fault}", path.display())]
    OtherTable {
        /// The file.
        path: PathBuf,
        /// The difference, as a clause.
        fault: String,
    },
    /// All examples are of one image, and an objective asks for another one.
    #[error(
        "all {n_examples} examples are of one image, and matching needs another image for each"
    )]
    OneImage {
        /// The number of examples.
        n_examples: usize,
    },
    /// A row beyond the last was asked for.
    #[error("there is no row {row}: the data set has {n_rows}")]
    NoSuchRow {
        /// The row, from 0.
        row: usize,
        /// The number of rows.
        n_rows: usize,
    },
}
