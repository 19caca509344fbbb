//! A random part of a picture, mirrored half the time.

use evaluate::images::Rgb;
use merge::random::Sequence;

/// How often a part of a random shape is tried before the middle is taken.
const ATTEMPTS: usize = 10;

/// Width over height of a part: log-uniform between these.
const ASPECTS: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

/// A part of random place, area and shape, as `RandomResizedCrop` of torchvision chooses it. It is
/// resized afterwards, as any picture.
///
/// Szegedy et al. 2015, "Going Deeper with Convolutions", <https://arxiv.org/abs/1409.4842>,
/// section 6.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomCrop {
    /// The least share of the area.
    pub least_area: f64,
    /// Whether the part may be mirrored.
    pub flip: bool,
}

/// A box of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

impl RandomCrop {
    /// The part of a picture.
    #[must_use]
    pub fn apply(&self, picture: &Rgb, draws: &mut Sequence) -> Rgb {
        let part = self.part(picture.width, picture.height, draws);
        let is_mirrored = self.flip && draws.chance(0.5);
        let (rows, _) = picture.pixels.as_chunks::<3>();
        let mut pixels = Vec::with_capacity(3 * part.width * part.height);
        for y in part.y..part.y + part.height {
            let row = &rows[y * picture.width + part.x..][..part.width];
            match is_mirrored {
                true => pixels.extend(row.iter().rev().flatten()),
                false => pixels.extend(row.iter().flatten()),
            }
        }
        Rgb {
            width: part.width,
            height: part.height,
            pixels,
        }
    }

    fn part(&self, width: usize, height: usize, draws: &mut Sequence) -> Part {
        let area = (width * height) as f64;
        let [low, high] = ASPECTS.map(f64::ln);
        for _ in 0..ATTEMPTS {
            let target = area * draws.between(self.least_area, 1.0);
            let aspect = draws.between(low, high).exp();
            let w = (target * aspect).sqrt().round_ties_even() as usize;
            let h = (target / aspect).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                return Part {
                    x: draws.below(width - w + 1),
                    y: draws.below(height - h + 1),
                    width: w,
                    height: h,
                };
            }
        }
        middle(width, height)
    }
}

/// The largest part in the middle whose shape is allowed.
fn middle(width: usize, height: usize) -> Part {
    let aspect = width as f64 / height.max(1) as f64;
    let (w, h) = if aspect < ASPECTS[0] {
        (
            width,
            (width as f64 / ASPECTS[0]).round_ties_even() as usize,
        )
    } else if aspect > ASPECTS[1] {
        (
            (height as f64 * ASPECTS[1]).round_ties_even() as usize,
            height,
        )
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    Part {
        x: (width - w) / 2,
        y: (height - h) / 2,
        width: w,
        height: h,
    }
}

#[cfg(test)]
mod tests {
    use merge::random::Draws;

    use super::*;

    const CROP: RandomCrop = RandomCrop {
        least_area: 0.5,
        flip: true,
    };

    #[test]
    fn parts_lie_within_and_have_the_area_and_shape_that_are_asked_for() {
        let mut draws = Draws::new(1, "crop").sequence();
        for _ in 0..2000 {
            let part = CROP.part(300, 200, &mut draws);
            assert!(part.x + part.width <= 300 && part.y + part.height <= 200);
            let share = (part.width * part.height) as f64 / 60_000.0;
            assert!((0.49..=1.0).contains(&share), "{part:?}");
            let aspect = part.width as f64 / part.height as f64;
            assert!((0.74..1.35).contains(&aspect), "{part:?}");
        }
    }

    #[test]
    fn a_picture_that_no_part_fits_gives_its_middle() {
        let mut draws = Draws::new(1, "crop").sequence();
        let part = CROP.part(1000, 10, &mut draws);
        let expected = Part {
            x: 493,
            y: 0,
            width: 13,
            height: 10,
        };
        assert_eq!(part, expected);
    }

    #[test]
    fn half_of_the_parts_are_mirrored() {
        let picture = Rgb {
            width: 2,
            height: 1,
            pixels: vec![1, 1, 1, 2, 2, 2],
        };
        let whole = RandomCrop {
            least_area: 1.0,
            flip: true,
        };
        let mut draws = Draws::new(3, "flip").sequence();
        let mirrored = (0..1000).filter(|_| whole.apply(&picture, &mut draws).pixels[0] == 2);
        let n = mirrored.count();
        // Five standard errors of sqrt(1000 / 4).
        assert!((421..=579).contains(&n), "{n}");
    }
}
