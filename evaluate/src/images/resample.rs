//! Pillow's resize: coefficients in 22-bit fixed point, first along rows, then along columns, with
//! eight bits between the two.

use super::{Filter, Part, Rgb};

/// Bits behind the point of a coefficient.
const PRECISION: u32 = 22;

/// Half a unit of the result, so that shifting rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// Rows that are resized together along their length.
const ROWS: usize = 16;

/// Values of a row that are summed in registers along columns.
const LANES: usize = 32;

/// The coefficients of one axis.
#[derive(Clone, Debug)]
struct Axis {
    /// For every output position, its first input position and where its coefficients begin and
    /// end.
    spans: Vec<(usize, std::ops::Range<usize>)>,
    coefficients: Vec<i32>,
}

impl Axis {
    fn new(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let mut axis = Self {
            spans: Vec::with_capacity(to),
            coefficients: Vec::new(),
        };
        let mut weights = Vec::new();
        for position in 0..to {
            let center = (position as f64 + 0.5) * scale;
            // Both are cut towards zero.
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            weights.clear();
            weights.extend(
                (first..end)
                    .map(|input| filter.weight((input as f64 - center + 0.5) * (1.0 / stretch))),
            );
            let sum = weights.iter().fold(0.0, |sum, weight| sum + weight);
            let begin = axis.coefficients.len();
            axis.coefficients.extend(weights.iter().map(|&weight| {
                let share = if sum == 0.0 { weight } else { weight / sum };
                let scaled = share * f64::from(1 << PRECISION);
                // Rounded half away from zero.
                (if share < 0.0 {
                    scaled - 0.5
                } else {
                    scaled + 0.5
                }) as i32
            }));
            axis.spans.push((first, begin..axis.coefficients.len()));
        }
        axis
    }
}

/// The direction in which a picture is resized first: eight bits between the two passes make a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passes {
    /// Along rows, as Pillow did up to version 12.
    #[default]
    RowsFirst,
    /// Along columns where that leaves less to do, as Pillow does from version 13 on.
    LessFirst,
}

impl Passes {
    /// Whether columns are resized first: they lose more than twice as many pixels as rows do.
    fn is_columns_first(self, from: (usize, usize), to: (usize, usize)) -> bool {
        let lost = |from: usize, to: usize| from as i64 - to as i64;
        let (down, across) = (lost(from.1, to.1), lost(from.0, to.0));
        self == Self::LessFirst && down > 0 && down > 2 * across
    }
}

/// Resizes pictures of one size to another, as Pillow's `resize(size, filter)` does, bit by bit: the
/// aspect ratio is not kept, and shrinking widens the filter.
#[derive(Clone, Debug)]
pub struct Resampler {
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
    passes: Passes,
    across: Axis,
    down: Axis,
}

impl Resampler {
    /// From `(width, height)` to `(width, height)`, none of them zero, bicubic.
    #[must_use]
    pub fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        Self::with_filter(from, to, Filter::Bicubic)
    }

    /// The same with another filter.
    #[must_use]
    pub fn with_filter(from: (usize, usize), to: (usize, usize), filter: Filter) -> Self {
        Self {
            from,
            to,
            filter,
            passes: Passes::RowsFirst,
            across: Axis::new(from.0, to.0.max(1), filter),
            down: Axis::new(from.1, to.1.max(1), filter),
        }
    }

    /// The same with another order of its passes.
    #[must_use]
    pub fn in_passes(self, passes: Passes) -> Self {
        Self { passes, ..self }
    }

    /// The picture in the new size; of another size than announced, it gets its own coefficients.
    #[must_use]
    pub fn resize(&self, picture: &Rgb) -> Rgb {
        let whole = Part {
            left: 0,
            top: 0,
            width: picture.width,
            height: picture.height,
        };
        self.resize_part(picture, whole)
    }

    /// A part of the picture in the new size, as if it had been cut out before: nothing outside of
    /// it is seen. A part that reaches beyond the picture ends at its border.
    #[must_use]
    pub fn resize_part(&self, picture: &Rgb, part: Part) -> Rgb {
        let part = part.within(picture);
        if (part.width, part.height) != self.from {
            let from = (part.width, part.height);
            let own = Self::with_filter(from, self.to, self.filter).in_passes(self.passes);
            return own.resize_part(picture, part);
        }
        let (width, height) = self.to;
        if self.passes.is_columns_first(self.from, self.to) {
            let low = (part.width, height);
            let picture = Self::with_filter(self.from, low, self.filter).resize_part(picture, part);
            return Self::with_filter(low, self.to, self.filter).resize(&picture);
        }
        let stride = 3 * picture.width;
        let from = &picture.pixels[part.top * stride + 3 * part.left..];
        let mut narrow = Vec::new();
        let rows = if part.width != width {
            narrow.resize(3 * width * part.height, 0);
            pulp::Arch::new().dispatch(Across {
                axis: &self.across,
                from,
                stride,
                width: part.width,
                to: &mut narrow,
            });
            narrow.as_slice()
        } else if part.width == picture.width {
            &from[..stride * part.height]
        } else {
            for row in from.chunks(stride).take(part.height) {
                narrow.extend_from_slice(&row[..3 * width]);
            }
            narrow.as_slice()
        };
        let mut pixels;
        if part.height == height {
            pixels = rows.to_vec();
        } else {
            pixels = vec![0; 3 * width * height];
            pulp::Arch::new().dispatch(Down {
                axis: &self.down,
                from: rows,
                row_bytes: 3 * width,
                to: &mut pixels,
            });
        }
        Rgb {
            width,
            height,
            pixels,
            alpha: None,
        }
    }
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Adds eight values times a coefficient.
#[inline(always)]
fn add(sums: &mut [i32; 8], values: &[u8; 8], coefficient: i32) {
    for lane in 0..8 {
        sums[lane] += i32::from(values[lane]) * coefficient;
    }
}

#[inline(always)]
fn store(sums: &[i32; 8], values: &mut [u8]) {
    for (value, &sum) in values.iter_mut().zip(sums) {
        *value = to_byte(sum);
    }
}

/// The first and the last eight of sixteen values.
#[inline(always)]
fn halves(values: &[u8; ROWS]) -> &[[u8; 8]] {
    values.as_chunks::<8>().0
}

/// The pass along rows. Sixteen rows at a time are turned, so that the values at one place of all
/// of them lie side by side: then a coefficient meets sixteen values of each color at once.
struct Across<'a> {
    axis: &'a Axis,
    /// Rows begin `stride` bytes apart; `width` pixels of each count.
    from: &'a [u8],
    stride: usize,
    width: usize,
    to: &'a mut [u8],
}

impl pulp::NullaryFnOnce for Across<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.axis.spans.len();
        let mut turned = vec![[0u8; ROWS]; 3 * self.width];
        let mut resized = vec![[0u8; ROWS]; 3 * width];
        let bands = self.from.chunks(ROWS * self.stride);
        for (from, to) in bands.zip(self.to.chunks_mut(ROWS * 3 * width)) {
            let n_rows = to.len() / (3 * width);
            turn(from, self.stride, 3 * self.width, n_rows, &mut turned);
            let columns = turned.as_chunks::<3>().0;
            let outputs = resized.as_chunks_mut::<3>().0;
            for (output, (first, span)) in outputs.iter_mut().zip(&self.axis.spans) {
                let coefficients = &self.axis.coefficients[span.clone()];
                // Six variables and not one array: so they stay in registers.
                let (mut red0, mut red1) = ([HALF; 8], [HALF; 8]);
                let (mut green0, mut green1) = ([HALF; 8], [HALF; 8]);
                let (mut blue0, mut blue1) = ([HALF; 8], [HALF; 8]);
                for ([red, green, blue], &coefficient) in columns[*first..].iter().zip(coefficients)
                {
                    add(&mut red0, &halves(red)[0], coefficient);
                    add(&mut red1, &halves(red)[1], coefficient);
                    add(&mut green0, &halves(green)[0], coefficient);
                    add(&mut green1, &halves(green)[1], coefficient);
                    add(&mut blue0, &halves(blue)[0], coefficient);
                    add(&mut blue1, &halves(blue)[1], coefficient);
                }
                let [red, green, blue] = output;
                store(&red0, &mut red[..8]);
                store(&red1, &mut red[8..]);
                store(&green0, &mut green[..8]);
                store(&green1, &mut green[8..]);
                store(&blue0, &mut blue[..8]);
                store(&blue1, &mut blue[8..]);
            }
            turn_back(&resized, 3 * width, to);
        }
    }
}

/// Values `i` of up to sixteen rows, side by side.
#[inline(always)]
fn turn(rows: &[u8], stride: usize, row_bytes: usize, n_rows: usize, turned: &mut [[u8; ROWS]]) {
    for half in 0..2 {
        let first = 8 * half;
        if first >= n_rows {
            break;
        }
        // Rows that are missing at the end are repeats of the last; nobody reads them.
        let row = |index: usize| {
            let begin = (first + index).min(n_rows - 1) * stride;
            &rows[begin..begin + row_bytes]
        };
        let eight: [&[u8]; 8] = std::array::from_fn(row);
        let blocks = row_bytes / 8;
        for (block, columns) in turned.chunks_exact_mut(8).enumerate().take(blocks) {
            let words = eight.map(|row| word(&row[8 * block..8 * block + 8]));
            for (column, word) in columns.iter_mut().zip(transpose(words)) {
                column[first..first + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        for (index, column) in turned.iter_mut().enumerate().skip(8 * blocks) {
            for (value, row) in column[first..first + 8].iter_mut().zip(&eight) {
                *value = row[index];
            }
        }
    }
}

/// The way back from [`turn`].
#[inline(always)]
fn turn_back(turned: &[[u8; ROWS]], row_bytes: usize, rows: &mut [u8]) {
    let n_rows = rows.len() / row_bytes;
    let blocks = row_bytes / 8;
    for half in 0..2 {
        let first = 8 * half;
        let n_here = n_rows.saturating_sub(first).min(8);
        for (block, columns) in turned.chunks_exact(8).enumerate().take(blocks) {
            let words: [u64; 8] = std::array::from_fn(|i| word(&columns[i][first..first + 8]));
            for (index, word) in transpose(words).into_iter().enumerate().take(n_here) {
                let begin = (first + index) * row_bytes + 8 * block;
                rows[begin..begin + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        for (index, column) in turned.iter().enumerate().take(row_bytes).skip(8 * blocks) {
            for row in first..first + n_here {
                rows[row * row_bytes + index] = column[row];
            }
        }
    }
}

#[inline(always)]
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// An 8 by 8 matrix of bytes, turned: blocks of four, two and one change places.
#[inline(always)]
fn transpose(mut rows: [u64; 8]) -> [u64; 8] {
    for (distance, mask) in [
        (4, 0x0000_0000_ffff_ffff_u64),
        (2, 0x0000_ffff_0000_ffff),
        (1, 0x00ff_00ff_00ff_00ff),
    ] {
        let shift = 8 * distance;
        for index in 0..8 {
            if index & distance == 0 {
                let (upper, lower) = (rows[index], rows[index + distance]);
                let swapped = ((upper >> shift) ^ lower) & mask;
                rows[index] = upper ^ (swapped << shift);
                rows[index + distance] = lower ^ swapped;
            }
        }
    }
    rows
}

/// The pass along columns: whole rows are summed.
struct Down<'a> {
    axis: &'a Axis,
    from: &'a [u8],
    row_bytes: usize,
    to: &'a mut [u8],
}

impl pulp::NullaryFnOnce for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.to.chunks_exact_mut(self.row_bytes);
        for (to, (first, span)) in rows.zip(&self.axis.spans) {
            let coefficients = &self.axis.coefficients[span.clone()];
            let from = &self.from[first * self.row_bytes..];
            if self.row_bytes < LANES {
                for (index, value) in to.iter_mut().enumerate() {
                    let mut sum = HALF;
                    for (row, &coefficient) in coefficients.iter().enumerate() {
                        sum += i32::from(from[row * self.row_bytes + index]) * coefficient;
                    }
                    *value = to_byte(sum);
                }
                continue;
            }
            for begin in (0..self.row_bytes).step_by(LANES) {
                // The last lanes may overlap those before: they are summed twice, and alike.
                let begin = begin.min(self.row_bytes - LANES);
                let (mut sums0, mut sums1) = ([HALF; 8], [HALF; 8]);
                let (mut sums2, mut sums3) = ([HALF; 8], [HALF; 8]);
                for (row, &coefficient) in coefficients.iter().enumerate() {
                    let values = &from[row * self.row_bytes + begin..][..LANES];
                    let [values0, values1, values2, values3] = values.as_chunks::<8>().0 else {
                        continue;
                    };
                    add(&mut sums0, values0, coefficient);
                    add(&mut sums1, values1, coefficient);
                    add(&mut sums2, values2, coefficient);
                    add(&mut sums3, values3, coefficient);
                }
                let to = &mut to[begin..begin + LANES];
                store(&sums0, &mut to[..8]);
                store(&sums1, &mut to[8..16]);
                store(&sums2, &mut to[16..24]);
                store(&sums3, &mut to[24..]);
            }
        }
    }
}
