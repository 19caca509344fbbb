//! The color scale, in a space where equal steps look equal (OKLCH), for both themes.

use std::fmt::Write;

/// Steps of the scale. The values are printed in the cells, so few steps lose nothing.
pub const STEPS: usize = 16;

/// The reader's preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    Light,
    Dark,
}

/// A color for a screen, each channel 0 to 255.
type Rgb = [u8; 3];

/// Lightness 0 to 1, chroma from 0, hue in degrees.
#[derive(Clone, Copy)]
struct Oklch {
    lightness: f64,
    chroma: f64,
    hue: f64,
}

const DARK_INK: Rgb = [0x14, 0x16, 0x1f];
const LIGHT_INK: Rgb = [0xff, 0xff, 0xff];

impl Theme {
    /// Colors of the smallest and the largest value: the page's own lightness means near.
    fn ends(self) -> [Oklch; 2] {
        let color = |lightness, chroma, hue| Oklch {
            lightness,
            chroma,
            hue,
        };
        match self {
            Self::Light => [color(0.97, 0.03, 120.0), color(0.40, 0.13, 290.0)],
            Self::Dark => [color(0.27, 0.05, 290.0), color(0.92, 0.13, 110.0)],
        }
    }

    fn fill(self, step: usize) -> Rgb {
        let t = step as f64 / (STEPS - 1) as f64;
        let [low, high] = self.ends();
        let between = |a: f64, b: f64| a + (b - a) * t;
        // Mid-scale colors may be more vivid than either end.
        let vivid = 0.05 * (1.0 - (2.0 * t - 1.0).powi(2));
        Oklch {
            lightness: between(low.lightness, high.lightness),
            chroma: between(low.chroma, high.chroma) + vivid,
            hue: between(low.hue, high.hue),
        }
        .to_rgb()
    }

    /// Page, text, and text of lesser weight.
    fn page(self) -> [Rgb; 3] {
        match self {
            Self::Light => [[0xff, 0xff, 0xff], DARK_INK, [0x52, 0x56, 0x66]],
            Self::Dark => [[0x12, 0x13, 0x1a], [0xee, 0xee, 0xf4], [0xa9, 0xad, 0xbd]],
        }
    }
}

/// Style rules of a theme: `f0..` fill the cells of each step, `i0..` are legible on them.
pub fn css(theme: Theme) -> String {
    let [page, text, muted] = theme.page().map(hexadecimal);
    let mut rules = format!(
        ".heat .page{{fill:{page}}}\n.heat .title,.heat .panel{{fill:{text}}}\n\
         .heat .note,.heat .label{{fill:{muted}}}\n\
         .heat .none{{fill:none;stroke:{muted};stroke-dasharray:2 3}}\n"
    );
    for step in 0..STEPS {
        let fill = theme.fill(step);
        let (fill, ink) = (hexadecimal(fill), hexadecimal(ink_on(fill)));
        // Writing to a string cannot fail.
        let _ = writeln!(
            rules,
            ".heat .f{step}{{fill:{fill}}}.heat .i{step}{{fill:{ink}}}"
        );
    }
    rules
}

/// The background of a picture that is a file of its own.
pub fn page(theme: Theme) -> String {
    let [page, ..] = theme.page();
    hexadecimal(page)
}

fn hexadecimal([r, g, b]: Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// The ink with the higher contrast.
fn ink_on(fill: Rgb) -> Rgb {
    if contrast(DARK_INK, fill) >= contrast(LIGHT_INK, fill) {
        DARK_INK
    } else {
        LIGHT_INK
    }
}

/// Contrast ratio of two colors, 1 to 21 (WCAG 2.1).
fn contrast(a: Rgb, b: Rgb) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

fn luminance(color: Rgb) -> f64 {
    let [r, g, b] = color.map(|channel| {
        let channel = f64::from(channel) / 255.0;
        if channel <= 0.040_45 {
            channel / 12.92
        } else {
            ((channel + 0.055) / 1.055).powf(2.4)
        }
    });
    0.2126 * r + 0.7152 * g + 0.0722 * b
}

impl Oklch {
    /// To sRGB, by Ottosson 2020, "A perceptual color space for image processing"; what lies
    /// outside sRGB is cut off.
    fn to_rgb(self) -> Rgb {
        let (sin, cos) = self.hue.to_radians().sin_cos();
        let (a, b) = (self.chroma * cos, self.chroma * sin);
        let l = (self.lightness + 0.396_337_777_4 * a + 0.215_803_757_3 * b).powi(3);
        let m = (self.lightness - 0.105_561_345_8 * a - 0.063_854_172_8 * b).powi(3);
        let s = (self.lightness - 0.089_484_177_5 * a - 1.291_485_548 * b).powi(3);
        [
            4.076_741_662_1 * l - 3.307_711_591_3 * m + 0.230_969_929_2 * s,
            -1.268_438_004_6 * l + 2.609_757_401_1 * m - 0.341_319_396_5 * s,
            -0.004_196_086_3 * l - 0.703_418_614_7 * m + 1.707_614_701 * s,
        ]
        .map(|linear: f64| {
            let channel = if linear <= 0.003_130_8 {
                12.92 * linear
            } else {
                1.055 * linear.powf(1.0 / 2.4) - 0.055
            };
            (channel.clamp(0.0, 1.0) * 255.0).round() as u8
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// WCAG 2.1 asks for 4.5 : 1 for text of this size.
    const LEGIBLE: f64 = 4.5;

    #[test]
    fn every_text_is_legible_on_what_it_stands_on() {
        for theme in [Theme::Light, Theme::Dark] {
            let [page, text, muted] = theme.page();
            assert!(contrast(text, page) >= LEGIBLE && contrast(muted, page) >= LEGIBLE);
            for step in 0..STEPS {
                let fill = theme.fill(step);
                let found = contrast(ink_on(fill), fill);
                assert!(found >= LEGIBLE, "{theme:?} step {step}: {found}");
            }
        }
    }

    #[test]
    fn lightness_runs_one_way_over_the_scale() {
        for (theme, is_darker) in [(Theme::Light, true), (Theme::Dark, false)] {
            for step in 1..STEPS {
                let [before, after] = [step - 1, step].map(|step| luminance(theme.fill(step)));
                assert_eq!(after < before, is_darker, "{theme:?} step {step}");
            }
        }
    }

    #[test]
    fn white_black_and_grey_convert_exactly() {
        let grey = |lightness| Oklch {
            lightness,
            chroma: 0.0,
            hue: 0.0,
        };
        assert_eq!(grey(1.0).to_rgb(), [255; 3]);
        assert_eq!(grey(0.0).to_rgb(), [0; 3]);
        // OKLab lightness 0.5999 is sRGB grey 128.
        assert_eq!(grey(0.5999).to_rgb(), [128; 3]);
    }
}
