//! Turning the hue of a picture, through Pillow's HSV in bytes.

use evaluate::images::Rgb;

/// Turns the hue by `share` of the circle, from -0.5 to 0.5, as torchvision does on Pillow pictures.
pub fn turn_hue(picture: &mut Rgb, share: f64) {
    // Whole steps of a 256th, cut towards zero; adding them wraps around.
    let step = (share * 255.0) as i32 as u8;
    for pixel in picture.pixels.as_chunks_mut::<3>().0 {
        let [hue, saturation, value] = to_hsv(*pixel);
        *pixel = to_rgb([hue.wrapping_add(step), saturation, value]);
    }
}

fn to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let most = red.max(green).max(blue);
    let least = red.min(green).min(blue);
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let saturation = range / f32::from(most);
    let [r, g, b] = [red, green, blue].map(|value| f32::from(most - value) / range);
    let hue = if red == most {
        f64::from(b - g)
    } else if green == most {
        2.0 + f64::from(r) - f64::from(b)
    } else {
        4.0 + f64::from(g) - f64::from(r)
    };
    let hue = ((f64::from(hue as f32) / 6.0 + 1.0) % 1.0) as f32;
    let byte = |share: f32| (f64::from(share) * 255.0).clamp(0.0, 255.0) as u8;
    [byte(hue), byte(saturation), most]
}

fn to_rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let hue = (f64::from(hue) * 6.0 / 255.0) as f32;
    let sixth = hue.floor();
    let rest = f64::from(hue - sixth);
    let share = f64::from((f64::from(saturation) / 255.0) as f32);
    let dimmed = |by: f64| (f64::from(value) * (1.0 - by)).round().clamp(0.0, 255.0) as u8;
    let (p, q, t) = (
        dimmed(share),
        dimmed(share * rest),
        dimmed(share * (1.0 - rest)),
    );
    match sixth as u32 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}
