//! The steps of a conversion that compute new tables, and their kernels.

use std::sync::Arc;

use ndarray::{Array2, ArrayD, Axis, Slice, concatenate};

use super::buffers;
use super::draft::Draft;
use super::positions::{Resize, resize_absolute, resize_relative, resize_text, side, stack_rows};
use crate::layouts::{Dimensions, PositionTable, TableForm, Window, without_module};
use crate::methods::{GroupData, WholeKernel};
use crate::{Checkpoint, ConversionFault, Layout, Result, Role};

/// The most patches a side: a picture of 1,536 pixels in patches of 16. Its attention alone takes
/// 4 GB for 12 heads; published models have at most 48.
const MAX_WINDOW: usize = 96;

/// Sides of the old and the new window in patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// The old one's.
    pub from: usize,
    /// The new one's.
    pub to: usize,
}

impl Windows {
    /// The windows of a model of these sizes and of one for `image_size` pixels, the same if that
    /// is `None`.
    ///
    /// # Errors
    /// [`ConversionFault::UnknownSize`], [`ConversionFault::ImageSize`] for part of a patch, and
    /// [`ConversionFault::ImageTooLarge`].
    pub(super) fn new(sizes: &Dimensions, image_size: Option<usize>) -> Result<Self> {
        let patch = sizes
            .patch_size
            .filter(|&patch| patch > 0)
            .ok_or(ConversionFault::UnknownSize { what: "patch size" })?;
        let old = sizes
            .image_size
            .ok_or(ConversionFault::UnknownSize { what: "image size" })?;
        let image_size = image_size.unwrap_or(old / patch * patch);
        if image_size == 0 || !image_size.is_multiple_of(patch) {
            return Err(ConversionFault::ImageSize { image_size, patch }.into());
        }
        let window = image_size / patch;
        if window > MAX_WINDOW {
            return Err(ConversionFault::ImageTooLarge {
                image_size,
                window,
                limit: MAX_WINDOW,
            }
            .into());
        }
        Ok(Self {
            from: old / patch,
            to: window,
        })
    }
}

/// The sizes of a model whose bias table has room for `text_table_len` text positions; those of the
/// layout if that is `None`. A table's rows alone do not tell image and text apart.
///
/// # Errors
/// [`ConversionFault::TextTableLen`] when the rows that are left are no square.
pub fn sizes_with_text(
    source: &Checkpoint,
    layout: &dyn Layout,
    text_table_len: Option<usize>,
) -> Result<Dimensions> {
    let mut sizes = layout.dimensions().clone();
    let Some(text_table_len) = text_table_len else {
        return Ok(sizes);
    };
    let table = source
        .tensors()
        .find(|(name, _)| without_module(name) == "relative_position_bias_table");
    let (Some((key, info)), Some(patch)) = (table, sizes.patch_size) else {
        return Ok(sizes);
    };
    let rows = info.shape.first().copied().unwrap_or(0);
    let window = (text_table_len.checked_mul(2))
        .and_then(|text_rows| rows.checked_sub(text_rows)?.checked_sub(5))
        .map(|image_rows| (image_rows, image_rows.isqrt().div_ceil(2)))
        .filter(|&(image_rows, window)| window > 0 && side(window).pow(2) == image_rows);
    let (_, window) = window.ok_or_else(|| ConversionFault::TextTableLen {
        key: key.to_owned(),
        rows,
        text_table_len,
    })?;
    sizes.image_size = Some(window * patch);
    sizes.text_table_len = Some(text_table_len);
    Ok(sizes)
}

/// Brings all position tables to another window.
///
/// # Errors
/// Those of [`Windows::new`], [`Resize::check`] and [`ConversionFault::TableShape`].
pub(super) fn change_window(
    draft: &mut Draft,
    layout: &dyn Layout,
    windows: Windows,
    resize: Resize,
) -> Result<()> {
    let Windows { from, to } = windows;
    if from == to {
        return Ok(());
    }
    for PositionTable { key: name, form } in layout.position_tables() {
        let shape = draft.shape(name)?;
        let wrong = || {
            ConversionFault::TableShape {
                key: name.clone(),
                shape: shape.clone(),
                window: from,
            }
            .into()
        };
        match form {
            TableForm::Absolute
            | TableForm::AbsoluteRows
            | TableForm::Behind(_)
            | TableForm::Patches
            | TableForm::PatchRows => {
                let n_extra = match form {
                    TableForm::Behind(n) => *n,
                    TableForm::Patches | TableForm::PatchRows => 0,
                    _ => 1,
                };
                let n_rows = to * to + n_extra;
                let (new_shape, rows) = match (form, shape.as_slice()) {
                    (
                        TableForm::Absolute | TableForm::Behind(_) | TableForm::Patches,
                        &[1, rows, width],
                    ) => (vec![1, n_rows, width], rows),
                    (TableForm::AbsoluteRows | TableForm::PatchRows, &[rows, width]) => {
                        (vec![n_rows, width], rows)
                    }
                    _ => return Err(wrong()),
                };
                if rows != from * from + n_extra {
                    return Err(wrong());
                }
                let resize = match resize {
                    Resize::BicubicAntialiased => resize,
                    _ => Resize::Bicubic,
                };
                draft.compute(
                    std::slice::from_ref(name),
                    name,
                    new_shape,
                    Arc::new(AbsoluteTable { from, to, resize }),
                    format!("{from}x{from} positions to {to}x{to}, {resize}"),
                )?;
            }
            TableForm::Relative => {
                let &[rows, columns] = shape.as_slice() else {
                    return Err(wrong());
                };
                resize.check(name, from, to)?;
                let others = rows.checked_sub(side(from).pow(2)).ok_or_else(wrong)?;
                let kernel = RelativeTable {
                    n_tables: 1,
                    n_repeats: 1,
                    from,
                    to,
                    resize,
                    n_new_rows: 0,
                };
                draft.compute(
                    std::slice::from_ref(name),
                    name,
                    vec![side(to).pow(2) + others, columns],
                    Arc::new(kernel),
                    kernel.to_string(),
                )?;
            }
        }
    }
    Ok(())
}

/// Keeps the first `text_len` text positions. Text rows of the bias table are addressed from their
/// middle, so the table serves any length up to its own.
///
/// # Errors
/// [`ConversionFault::UnknownSize`] and [`ConversionFault::TextTooShort`].
pub(super) fn cut_text(draft: &mut Draft, layout: &dyn Layout, text_len: usize) -> Result<()> {
    let known = layout.dimensions().text_len;
    let from = known.ok_or(ConversionFault::UnknownSize {
        what: "text length",
    })?;
    if from == text_len {
        return Ok(());
    }
    if let Some(name) = layout.text_position_table() {
        return resample_text(draft, name, from, text_len);
    }
    if from < text_len {
        return Err(ConversionFault::TextTooShort { from, to: text_len }.into());
    }
    for name in draft.names() {
        let (axis, n_axes) = if name.ends_with(POSITION_IDS) {
            (1, 2)
        } else if name.ends_with("embeddings.position_embeddings.weight")
            || name.ends_with("pos_embed_text")
        {
            (0, 2)
        } else if name.ends_with(TEXT_POSITION_IDS) {
            (0, 1)
        } else {
            continue;
        };
        let mut shape = draft.shape(&name)?;
        if shape.len() != n_axes || shape[axis] != from {
            return Err(ConversionFault::TextShape {
                key: name,
                shape,
                text_len: from,
            }
            .into());
        }
        shape[axis] = text_len;
        let kernel = KeepFirst {
            axis,
            n_kept: text_len,
        };
        draft.compute(
            std::slice::from_ref(&name),
            &name,
            shape,
            Arc::new(kernel),
            format!("the first {text_len} of {from} text positions"),
        )?;
    }
    Ok(())
}

/// Brings a table of text positions to another length, as open_clip does.
fn resample_text(draft: &mut Draft, name: &str, from: usize, to: usize) -> Result<()> {
    let shape = draft.shape(name)?;
    let &[rows, width] = shape.as_slice() else {
        return Err(ConversionFault::TextShape {
            key: name.to_owned(),
            shape,
            text_len: from,
        }
        .into());
    };
    draft.compute(
        &[name.to_owned()],
        name,
        vec![to, width],
        Arc::new(TextTable { from: rows, to }),
        format!("{from} text positions to {to}, linear"),
    )
}

/// Adds the third token type, for the second image of NLVR2, where it is not there yet.
///
/// # Errors
/// [`crate::Error::MissingKey`], [`ConversionFault::TokenTypes`].
pub(super) fn add_third_token_type(draft: &mut Draft) -> Result<()> {
    let wanted = "token_type_embeddings.weight";
    let name = draft
        .names()
        .into_iter()
        .find(|name| without_module(name) == wanted);
    let name = name.unwrap_or_else(|| wanted.to_owned());
    match *draft.shape(&name)?.as_slice() {
        [3, _] => Ok(()),
        [2, width] => draft.compute(
            std::slice::from_ref(&name),
            &name,
            vec![3, width],
            Arc::new(ThirdTokenType),
            "row 2 for the second image, equal to row 1".to_owned(),
        ),
        _ => Err(ConversionFault::TokenTypes {
            shape: draft.shape(&name)?,
            key: name,
        }
        .into()),
    }
}

/// The buffers that do not depend on the window.
const POSITION_IDS: &str = "embeddings.position_ids";
const TEXT_POSITION_IDS: &str = "position_ids_text";

/// Whether there are index buffers that depend on more of the window than its side.
///
/// # Errors
/// [`crate::Error::UnknownKey`].
pub(super) fn has_indices(draft: &Draft, layout: &dyn Layout) -> Result<bool> {
    for name in draft.names() {
        if is_index(&name, layout)? && layout.buffer_for(&name, 1).is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether there are index buffers that depend on the side of the window alone.
///
/// # Errors
/// [`crate::Error::UnknownKey`].
pub(super) fn has_indices_by_side(draft: &Draft, layout: &dyn Layout) -> Result<bool> {
    for name in draft.names() {
        if is_index(&name, layout)? && layout.buffer_for(&name, 1).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a tensor is an index buffer that depends on the window.
fn is_index(name: &str, layout: &dyn Layout) -> Result<bool> {
    let is_of_text = name.ends_with(POSITION_IDS) || name.ends_with(TEXT_POSITION_IDS);
    Ok(layout.role(name)? == Role::Derived && !is_of_text)
}

/// Leaves out the index buffers for the old sizes, or computes those for `side` patches a side, or of `window`, in
/// their place.
///
/// # Errors
/// [`crate::Error::UnknownKey`].
pub(super) fn replace_indices(
    draft: &mut Draft,
    layout: &dyn Layout,
    side: Option<usize>,
    window: Option<Window>,
) -> Result<()> {
    for name in draft.names() {
        if !is_index(&name, layout)? {
            continue;
        }
        draft.drop_entry(&name, "index of the old sizes; loaders rebuild it");
        let buffer = (side.and_then(|side| layout.buffer_for(&name, side)))
            .or_else(|| window.and_then(|window| window.buffer(without_module(&name))));
        if let Some(buffer) = buffer {
            draft.put(buffers::entry(name, buffer))?;
        }
    }
    Ok(())
}

/// Makes one relative position bias table out of one or several.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelativeTable {
    /// Number of tables, side by side: one, or one per block.
    pub n_tables: usize,
    /// The number of times that the columns are repeated, for a table that all blocks shared.
    pub n_repeats: usize,
    /// Patches along a side of the old window.
    pub from: usize,
    /// Patches along a side of the new window.
    pub to: usize,
    /// The way of resizing image rows.
    pub resize: Resize,
    /// Zero rows to append, for text that the old table does not know.
    pub n_new_rows: usize,
}

impl std::fmt::Display for RelativeTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, to, .. } = self;
        if self.n_tables > 1 {
            write!(f, "tables of {} blocks side by side; ", self.n_tables)?;
        }
        if self.n_repeats > 1 {
            write!(f, "one table for each of {} blocks; ", self.n_repeats)?;
        }
        match (from == to, self.resize) {
            (true, _) => write!(f, "window {from}x{from} kept")?,
            (_, Resize::Bicubic | Resize::BicubicAntialiased) => {
                write!(f, "window {from}x{from} to {to}x{to}, {}", self.resize)?;
            }
            (_, Resize::GeometricOrCrop) if to < from => {
                write!(f, "window {from}x{from} cropped to {to}x{to}")?;
            }
            (_, Resize::Geometric | Resize::GeometricOrCrop) => {
                write!(f, "window {from}x{from} to {to}x{to}, geometric spacing")?;
            }
        }
        match self.n_new_rows {
            0 => Ok(()),
            n_rows => write!(f, "; {n_rows} zero rows for text"),
        }
    }
}

impl WholeKernel for RelativeTable {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let tables = (0..self.n_tables)
            .map(|index| Ok(matrix(group.member(index)?)))
            .collect::<Result<Vec<_>>>()?;
        let columns: Vec<_> = tables
            .iter()
            .cycle()
            .take(self.n_tables * self.n_repeats)
            .map(|table| table.view())
            .collect();
        let table = concatenate(Axis(1), &columns).expect("the plan compared the shapes");
        let resized = resize_relative(table.view(), self.from, self.to, self.resize);
        let new_rows = Array2::zeros((self.n_new_rows, table.ncols()));
        Ok(stack_rows(&[resized.view(), new_rows.view()]).into_dyn())
    }

    fn peak_bytes(&self, shape: &[usize], n_members: usize) -> u64 {
        // The members, their union, the half resized square and the result, of which the larger
        // window's are the largest.
        let growth = (side(self.to) as f64 / side(self.from) as f64).max(1.0);
        let table = f64_bytes(shape) as f64 * growth * growth;
        (4.0 * table) as u64 * (n_members * self.n_repeats) as u64
    }
}

/// Resizes an absolute position table.
#[derive(Clone, Copy, Debug)]
pub(super) struct AbsoluteTable {
    /// Patches along a side of the old window.
    pub from: usize,
    /// Patches along a side of the new window.
    pub to: usize,
    /// The way of resizing.
    pub resize: Resize,
}

impl WholeKernel for AbsoluteTable {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let table = group.member(0)?;
        let has_rows_alone = table.ndim() == 2;
        let table = match has_rows_alone {
            true => table.insert_axis(Axis(0)),
            false => table,
        };
        let table = table
            .into_dimensionality::<ndarray::Ix3>()
            .expect("the plan looked at the shape");
        let resized = resize_absolute(table.view(), self.from, self.to, self.resize);
        Ok(match has_rows_alone {
            true => resized.index_axis_move(Axis(0), 0).into_dyn(),
            false => resized.into_dyn(),
        })
    }

    fn peak_bytes(&self, shape: &[usize], _: usize) -> u64 {
        4 * f64_bytes(shape)
    }
}

/// Resamples a table of text positions.
#[derive(Clone, Copy, Debug)]
struct TextTable {
    from: usize,
    to: usize,
}

impl WholeKernel for TextTable {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let table = matrix(group.member(0)?);
        Ok(resize_text(table.view(), self.from, self.to).into_dyn())
    }

    fn peak_bytes(&self, shape: &[usize], _: usize) -> u64 {
        4 * f64_bytes(shape)
    }
}

/// Keeps the first entries along an axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepFirst {
    /// The axis.
    pub axis: usize,
    /// The number of entries that stay.
    pub n_kept: usize,
}

impl WholeKernel for KeepFirst {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let table = group.member(0)?;
        Ok(table
            .slice_axis(Axis(self.axis), Slice::from(..self.n_kept))
            .to_owned())
    }

    fn peak_bytes(&self, shape: &[usize], _: usize) -> u64 {
        2 * f64_bytes(shape)
    }
}

/// Adds a third row, for the second image of a pair, equal to the second.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThirdTokenType;

impl WholeKernel for ThirdTokenType {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let types = matrix(group.member(0)?);
        Ok(types.select(Axis(0), &[0, 1, 1]).into_dyn())
    }

    fn peak_bytes(&self, shape: &[usize], _: usize) -> u64 {
        3 * f64_bytes(shape)
    }
}

fn matrix(array: ArrayD<f64>) -> Array2<f64> {
    array
        .into_dimensionality()
        .expect("the plan looked at the shape")
}

fn f64_bytes(shape: &[usize]) -> u64 {
    8 * shape.iter().product::<usize>() as u64
}
