//! Numbers with a least value.

/// A number of at least 1.
pub fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("must be a whole number of at least 1".into()),
    }
}

/// A number for each of red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colors(pub [f32; 3]);

/// Parses a number for all of red, green and blue, or one for each.
pub fn parse_colors(text: &str) -> Result<Colors, String> {
    let bad = || format!("{text:?} is neither a number nor three with commas between them");
    let numbers = text.split(',').map(|number| number.trim().parse::<f32>());
    let numbers: Vec<f32> = numbers.collect::<Result<_, _>>().map_err(|_| bad())?;
    match *numbers {
        [all] => Ok(Colors([all; 3])),
        [red, green, blue] => Ok(Colors([red, green, blue])),
        _ => Err(bad()),
    }
}
