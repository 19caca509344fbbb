//! Adds one example to those in memory: its pictures, its texts, and whatever objectives hide of them.

use evaluate::images::Rgb;
use merge::random::{Draws, Sequence};

use super::Loader;
use crate::data::view::View;
use crate::data::{Example, Loaded};
use crate::objectives::Needs;

impl Loader {
    /// Adds the `wanted` inputs of an example, its place in the batch and its number given; its draws are keyed by
    /// `name`.
    pub(super) fn add(
        &self,
        loaded: &mut Loaded,
        (at, number): (usize, usize),
        example: &Example,
        wanted: Needs,
        name: &str,
    ) -> evaluate::Result<()> {
        let draws = &mut Draws::new(self.seed, name).sequence();
        let view = self.view.of_texts(example);
        for (index, picture) in example.pictures.iter().enumerate() {
            if loaded.images.len() <= index {
                loaded.images.push(Vec::new());
            }
            match &self.patches {
                Some(patches) if index == 0 => {
                    self.add_two_views(&view, picture, patches.target_side, loaded, draws);
                }
                _ => self.add_view(&view, picture, &mut loaded.images[index], name, draws),
            }
        }
        if wanted.text {
            let text = match &self.corruption {
                None => self.encoded(example)?,
                Some(corruption) => {
                    let draws = Draws::new(self.seed, &format!("caption of {name}"));
                    let text = corruption.apply(&example.text, &mut draws.sequence())?;
                    corruption.tokenizer.encode(&text, self.input.text.len)?
                }
            };
            if let Some((masking, pieces)) = self.masking.as_ref().filter(|_| wanted.masked_words) {
                let masked = masking.apply(pieces, &text.ids, draws);
                let first = (at * self.input.text.len) as u32;
                let places = masked.places.iter().map(|place| first + place);
                loaded.places.extend(places);
                loaded.labels.extend(masked.labels);
                loaded.masked_ids.extend(masked.ids);
            }
            if let Some(signals) = self.signals.as_ref().filter(|_| wanted.masked_signals) {
                let draws = Draws::new(self.seed, &format!("signals of {name}"));
                (loaded.signals).add(signals, &text.ids, &mut draws.sequence());
            }
            (loaded.others).add(self, Some(&text), wanted, number, name)?;
            loaded.ids.extend(text.ids);
            loaded.n_tokens.push(text.n_tokens);
        } else {
            loaded.others.add(self, None, wanted, number, name)?;
        }
        if let Some((scores, n)) = &mut loaded.answers {
            for &(label, score) in &example.answers {
                if let Some(place) = scores.get_mut(at * *n + label) {
                    *place = score;
                }
            }
        }
        if let Some(class) = example.class {
            loaded.classes.get_or_insert_default().push(class);
        }
        if let Some(patches) = self.patches.filter(|_| wanted.masked_patches) {
            let mut draws = Draws::new(self.seed, &format!("patches of {name}")).sequence();
            (loaded.masked_patches).extend(patches.masking.draw(&mut draws));
        }
        Ok(())
    }

    /// The model's view of an example's first picture, and the tokenizer's.
    fn add_two_views(
        &self,
        view: &View,
        picture: &Rgb,
        target_side: usize,
        loaded: &mut Loaded,
        draws: &mut Sequence,
    ) {
        let targets = &mut loaded.target_images;
        let from = targets.len();
        targets.resize(from + 3 * target_side * target_side, 0.0);
        let values = &mut loaded.images[0];
        let at = values.len();
        values.resize(at + view.len(), 0.0);
        let target = (&mut targets[from..], target_side);
        view.write_two(picture, &mut values[at..], target, draws);
    }

    /// The model's view of a picture of an example, whose draws are keyed by `name`.
    pub(in crate::data) fn add_picture(
        &self,
        example: &Example,
        picture: &Rgb,
        values: &mut Vec<f32>,
        name: &str,
        draws: &mut Sequence,
    ) {
        let view = self.view.of_texts(example);
        self.add_view(&view, picture, values, name, draws);
    }

    fn add_view(
        &self,
        view: &View,
        picture: &Rgb,
        values: &mut Vec<f32>,
        name: &str,
        draws: &mut Sequence,
    ) {
        let from = values.len();
        values.resize(from + view.len(), 0.0);
        let noise = Draws::new(self.seed, &format!("erased of {name}"));
        view.write(picture, &mut values[from..], draws, &noise);
    }
}
