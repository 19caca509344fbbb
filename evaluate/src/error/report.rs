//! Faults of results, and of the way in which they are shown.

use std::path::PathBuf;

/// A fault of a result, or of the way in which it is shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportFault {
    /// A JSON file does not say that it is of a form that reports are made of.
    #[error("{}: is not a result of this program: {fault}", path.display())]
    ReportSchema {
        /// The file.
        path: PathBuf,
        /// The other form, as a clause.
        fault: String,
    },
    /// A report contradicts itself.
    #[error("{}: {fault}", path.display())]
    BadReport {
        /// The file.
        path: PathBuf,
        /// The fault, as a clause.
        fault: String,
    },
    /// A picture of a report is no `data:` address of a PNG or JPEG file, so that showing it could
    /// reach for the network.
    #[error("the picture of image `{id}` is not an embedded PNG or JPEG file")]
    Thumbnail {
        /// The image.
        id: String,
    },
    /// A list of published figures is malformed.
    #[error("{}: is not a list of published figures: {fault}", path.display())]
    BadFigures {
        /// The file.
        path: PathBuf,
        /// The fault, with the line where there is one.
        fault: String,
    },
    /// A format has no room for pictures.
    #[error("{label}: distances are drawn as a heat map, which {format} cannot hold")]
    NoHeatMap {
        /// The file of distances.
        label: String,
        /// The format.
        format: &'static str,
    },
    /// A heat map has no cell.
    #[error("{label}: holds no distances of modules within blocks")]
    NoCells {
        /// The file of distances.
        label: String,
    },
}
