//! Captions with words masked, replaced and left out, as ZeroVL learns from them.

/// The token in place of a masked word.
const MASK: &str = "[MASK]";

/// Draws below this change a token.
const CHANGED: f64 = 0.2;

/// Changes the word pieces of a caption and puts them together again: 10 % become `[MASK]`, 2 % another
/// entry of the vocabulary, 8 % are left out.
///
/// `draw` gives a uniform number in [0, 1) for each piece, `pick` an entry of the vocabulary for each
/// replaced one. Words keep two pieces behind their first; a third and later ones are lost, and so is a
/// piece behind nothing or behind `[MASK]`. All of that is the published program's: also a caption that
/// no draw changes can lose the end of a long word.
#[must_use]
pub fn corrupted<'a>(
    pieces: &[&'a str],
    mut draw: impl FnMut() -> f64,
    mut pick: impl FnMut() -> &'a str,
) -> String {
    let kept: Vec<&str> = pieces
        .iter()
        .filter_map(|&piece| {
            let draw = draw();
            if draw >= CHANGED {
                return Some(piece);
            }
            let share = draw / CHANGED;
            if share < 0.5 {
                Some(MASK)
            } else if share < 0.6 {
                Some(pick())
            } else {
                None
            }
        })
        .collect();
    joined(&kept)
}

fn joined(pieces: &[&str]) -> String {
    let continuing = |at: usize| pieces.get(at).and_then(|piece| piece.strip_prefix("##"));
    let mut words: Vec<String> = Vec::with_capacity(pieces.len());
    let mut at = 0;
    while let Some(&piece) = pieces.get(at) {
        at += 1;
        if piece.starts_with("##") {
            continue;
        }
        let mut word = piece.to_owned();
        if piece != MASK {
            for _ in 0..2 {
                let Some(more) = continuing(at) else { break };
                word.push_str(more);
                at += 1;
            }
        }
        words.push(word);
    }
    words.join(" ")
}
