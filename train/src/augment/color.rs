//! Operations on the values of pixels: contrast, equalizing, brightness, sharpness.

use evaluate::images::Rgb;

/// Stretches each channel so that its least value becomes 0 and its largest 255:
/// `255 v / (high - low) - 255 low / (high - low)`, truncated. A channel of one value stays.
///
/// With `whitens` a channel whose least value is above 0 becomes 255 throughout: EVE's published program
/// negates that value as a byte, so `256 - low` stands in place of `-low`.
pub fn auto_contrast(picture: &mut Rgb, whitens: bool) {
    look_up(picture, |counts| {
        let low = counts.iter().position(|&count| count > 0)?;
        let high = counts.iter().rposition(|&count| count > 0)?;
        if high <= low {
            return None;
        }
        let scale = 255.0 / (high - low) as f64;
        let shift = match whitens && low > 0 {
            true => 256.0 - low as f64,
            false => -(low as f64),
        };
        let offset = shift * scale;
        Some(table(|value| {
            (f64::from(value) * scale + offset).clamp(0.0, 255.0) as u8
        }))
    });
}

/// Spreads the values of each channel so that all are about equally frequent: a value becomes the
/// number of pixels below it, plus half a step, by the step. The step is the number of pixels
/// outside of the largest value by 255; a channel with a step of 0 stays.
pub fn equalize(picture: &mut Rgb) {
    look_up(picture, |counts| {
        let last = counts.iter().rfind(|&&count| count > 0)?;
        let step = (counts.iter().sum::<usize>() - last) / 255;
        let mut below = step / 2;
        (step > 0).then(|| {
            table(|value| {
                let level = below.checked_div(step).unwrap_or_default().min(255) as u8;
                below += counts[usize::from(value)];
                level
            })
        })
    });
}

/// Multiplies by `factor`, clipped and truncated.
pub fn brightness(picture: &mut Rgb, factor: f64) {
    let table = table(|value| (f64::from(value) * factor).clamp(0.0, 255.0) as u8);
    for value in &mut picture.pixels {
        *value = table[usize::from(*value)];
    }
}

/// Moves each pixel away from a blurred copy (`factor` above 1) or towards it (below 1):
/// `blurred + factor (v - blurred)`, truncated. The blur weighs a pixel with 5/13 and its eight
/// neighbors with 1/13; pixels at the border stay.
///
/// A value beyond a byte is clipped, or `wraps` around, as the published program has it.
pub fn sharpness(picture: &mut Rgb, factor: f64, wraps: bool) {
    if picture.width < 3 || picture.height < 3 {
        return;
    }
    let row_bytes = 3 * picture.width;
    let mut sharp = picture.pixels.clone();
    let rows = sharp.chunks_exact_mut(row_bytes).skip(1);
    let around = picture.pixels.windows(3 * row_bytes).step_by(row_bytes);
    for (to, three) in rows.zip(around) {
        pulp::Arch::new().dispatch(Sharpen {
            three,
            to,
            factor: factor as f32,
            wraps,
        });
    }
    picture.pixels = sharp;
}

/// One row of [`sharpness`].
struct Sharpen<'a> {
    /// The row before, the row, the row after.
    three: &'a [u8],
    to: &'a mut [u8],
    factor: f32,
    wraps: bool,
}

impl pulp::NullaryFnOnce for Sharpen<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let n = self.to.len();
        let (above, rest) = self.three.split_at(n);
        let (row, below) = rest.split_at(n);
        // Sums of three pixels, one above the other.
        let mut columns = vec![0u16; n];
        for (((sum, &a), &b), &c) in columns.iter_mut().zip(above).zip(row).zip(below) {
            *sum = u16::from(a) + u16::from(b) + u16::from(c);
        }
        let inner = n - 6;
        let (left, middle) = (&columns[..inner], &columns[3..3 + inner]);
        let (right, row) = (&columns[6..6 + inner], &row[3..3 + inner]);
        let to = &mut self.to[3..3 + inner];
        if self.wraps {
            let wrapped = |value: f32| value as i32 as u8;
            fill(to, row, [left, middle, right], self.factor, wrapped);
        } else {
            let clipped = |value: f32| value.clamp(0.0, 255.0) as i32 as u8;
            fill(to, row, [left, middle, right], self.factor, clipped);
        }
    }
}

#[inline(always)]
fn fill(
    to: &mut [u8],
    row: &[u8],
    [left, middle, right]: [&[u16]; 3],
    factor: f32,
    to_byte: impl Fn(f32) -> u8,
) {
    for (index, to) in to.iter_mut().enumerate() {
        let value = u32::from(row[index]);
        let sum = u32::from(left[index] + middle[index] + right[index]) + 4 * value;
        let blurred = by_thirteen(sum) as f32;
        *to = to_byte(blurred + factor * (value as f32 - blurred));
    }
}

/// `sum / 13`, rounded, for sums of up to 13 · 255. A half never occurs, for 13 is odd.
#[inline(always)]
fn by_thirteen(sum: u32) -> u32 {
    ((2 * sum + 13) * 20_165) >> 19
}

fn table(level: impl FnMut(u8) -> u8) -> [u8; 256] {
    let mut levels = (0..=255).map(level);
    std::array::from_fn(|_| levels.next().unwrap_or_default())
}

/// Replaces the values of each channel by those of a table, if there is one for its counts.
fn look_up(picture: &mut Rgb, table_of: impl Fn(&[usize; 256]) -> Option<[u8; 256]>) {
    let mut counts = [[0usize; 256]; 3];
    for pixel in picture.pixels.as_chunks::<3>().0 {
        for (counts, &value) in counts.iter_mut().zip(pixel) {
            counts[usize::from(value)] += 1;
        }
    }
    let identity = table(|value| value);
    let tables = counts.map(|counts| table_of(&counts).unwrap_or(identity));
    for pixel in picture.pixels.as_chunks_mut::<3>().0 {
        for (table, value) in tables.iter().zip(pixel) {
            *value = table[usize::from(*value)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thirteenth_is_rounded_rightly_for_every_sum() {
        for sum in 0..=13 * 255 {
            let expected = (f64::from(sum) / 13.0).round();
            assert_eq!(f64::from(by_thirteen(sum)), expected, "{sum}");
        }
    }
}
